"""A loaded GGUF model: its text side (tokenizer, chat template) and its identity.

Law: everything here is safe on any thread. The C model lives exactly as long as this object, so a tokenizer call that
still runs when the engine closes never touches freed memory.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

from llmaas.calls import Sampling
from llmaas.config.model_kinds import ModelKind, kind_of
from llmaas.engine.base import Prepared
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.vocabulary import Vocabulary
from llmaas.engine.llama.chat import ChatTemplate
from llmaas.engine.llama.devices import EVERYWHERE, Placement, device_list, devices_apart
from llmaas.engine.llama.lib import C, collect_lines, known_token, load_model, metadata
from llmaas.engine.llama.memory_use import copied_bytes, device_bytes
from llmaas.engine.llama.model_file import ModelFiles
from llmaas.engine.llama.tokenizer import Tokenizer
from llmaas.engine.llama.vocab import Vocab, piece_of
from llmaas.engine.llama.weights_memory import hold_pages
from llmaas.errors import ModelUnreadable
from llmaas.records import Geometry, Message
from llmaas.weights_tier import WeightsTier

_HINT = (
    "Give --model a GGUF file of a model that writes text or makes embeddings, with its vocabulary; 'llmaas doctor' "
    "examines one."
)


class LlamaModel:
    """Weights and vocabulary. ``handle`` is the ``llama_model *``, ``vocab`` the ``llama_vocab *``. Raises
    ModelUnreadable, ConfigError for a device that is not there.
    """

    def __init__(
        self,
        path: Path,
        *,
        repack: bool = True,
        weights: bool = True,
        placement: Placement = EVERYWHERE,
        held: bool = False,
    ) -> None:
        """``placement``: what computes it. ``held``: lock its pages in RAM, if the process may."""
        self.path = path
        self.files = ModelFiles(path)
        weakref.finalize(self, self.files.close)
        with collect_lines() as lines:
            self.handle = load_model(
                path,
                repack=repack,
                weights=weights,
                devices=device_list(placement.devices),
                gpu_layers=placement.layers,
            )
        elsewhere = devices_apart()
        self.copied_bytes = copied_bytes(lines, elsewhere)
        """Memory of the second copy that llama.cpp keeps of some weights, beside the mapped file."""
        self.device_bytes = device_bytes(lines, elsewhere)
        """Of its weights, by the name of the device that they are on."""
        weakref.finalize(self, C.llama_model_free, self.handle).atexit = False  # at exit a context may still use it
        self.files.check_path()
        self.files.guard()
        self.held = held and weights and hold_pages(self.files.paths)
        """Whether its pages are locked in RAM."""
        try:
            self.kind = self._served_kind()
            self._words = words = Vocab(self.handle, metadata(self.handle, "tokenizer.ggml.pre") or "default")
        except ModelUnreadable as error:
            raise ModelUnreadable(f"{path} cannot be served: {error.message}", hint=_HINT) from error
        self.vocab, self.n_vocab = words.handle, words.n_tokens
        self._tokenizer = Tokenizer(words)
        piece, is_end = functools.partial(piece_of, self.vocab), functools.partial(C.llama_vocab_is_eog, self.vocab)
        self.constraints = Constraints(Vocabulary(self.n_vocab, piece, is_end))
        template = C.llama_model_chat_template(self.handle, None)
        self._chat = ChatTemplate(
            template.decode("utf-8", "replace") if template else None,
            bos=words.text(words.bos),
            eos=words.text(words.eos),
        )

    # -- text

    @property
    def token_bytes(self) -> int:
        return self._words.most_bytes

    def tokenize(
        self, text: str, *, special: bool, bos: bool, after: int | None = None, limit: int | None = None
    ) -> list[int]:
        tokens = self._tokenizer.tokens(text, special=special, after=after, limit=limit)
        # llama.cpp could do this, but it would put a second start token before a rendered template that has its own.
        if bos and self._words.start is not None and tokens[:1] != [self._words.start]:
            tokens.insert(0, self._words.start)
        return tokens

    @property
    def control_names(self) -> tuple[str, ...]:
        return self._words.control_names

    def piece(self, token: int) -> bytes:
        return self._words.piece(token)

    def is_end(self, token: int) -> bool:
        return self._words.is_end(token)

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        return self._chat.render(messages, answer=answer)

    def stop_text(self) -> None:
        self._tokenizer.stop()
        self._chat.stop()

    def check_sampling(self, sampling: Sampling) -> Prepared | None:
        return self.constraints.check(sampling)

    def _served_kind(self) -> ModelKind:
        """Raises ModelUnreadable for a model that neither writes one token after another nor makes embeddings."""
        name = self.architecture or "of no known kind"
        causal = {"false": False, "true": True}.get(metadata(self.handle, f"{name}.attention.causal") or "")
        kind, why = kind_of(name, causal, int(self.pooling) if self.pooling.isdecimal() else None)
        if kind is ModelKind.WRITER and C.llama_model_has_encoder(self.handle):
            kind, why = ModelKind.OTHER, "it has an encoder"
        if kind is ModelKind.OTHER:
            raise ModelUnreadable(f"{why} ({name}): such models are not served")
        return kind

    def refuse_without_text(self) -> None:
        """Raises ModelUnreadable for a model that makes embeddings only."""
        if self.kind is not ModelKind.WRITER:
            raise ModelUnreadable(f"{self.path} {self.kind.value} ({self.architecture}): it writes no text", hint=_HINT)

    @property
    def end(self) -> int:
        """A token that ends an answer; 0 where the model has none."""
        known = map(known_token, (C.llama_vocab_eos(self.vocab), C.llama_vocab_eot(self.vocab)))
        return max([token for token in known if token is not None], default=0)

    @property
    def weights_in(self) -> WeightsTier:
        """Where they are while they are used."""
        if 2 * self.device_bytes.total() > self.size_bytes:
            return WeightsTier.GPU
        return WeightsTier.HELD if self.held else WeightsTier.PAGES

    def park(self) -> int:
        """Let the system have the memory of the weights' pages back, unless they are held. Returns the bytes."""
        return 0 if self.held else self.files.drop_pages()

    # -- identity

    @property
    def architecture(self) -> str:
        return metadata(self.handle, "general.architecture") or ""

    @property
    def pooling(self) -> str:
        """How its file says that embeddings are pooled (``pooling_type``); "" if it does not."""
        return metadata(self.handle, f"{self.architecture}.pooling_type") or ""

    @property
    def name(self) -> str:
        return metadata(self.handle, "general.name") or Path(self.file).stem

    @property
    def file(self) -> str:
        return os.fsencode(self.path.name).decode("utf-8", "replace")

    @property
    def note(self) -> str:
        return self._chat.note

    @property
    def takes_tools(self) -> bool:
        return self._chat.tools

    @property
    def tool_mark(self) -> str:
        return self._chat.tool_mark

    def why_not_chunkable(self) -> str:
        """Why the model's state is not rows of KV per token; empty if it may be."""
        if C.llama_model_is_recurrent(self.handle) or C.llama_model_is_hybrid(self.handle):
            return "recurrent layers keep one state for all tokens"
        return ""

    def geometry(self) -> Geometry:
        """The KV geometry according to the metadata. The engine checks it against a real state."""
        arch = self.architecture
        heads = max(1, int(C.llama_model_n_head(self.handle)))
        kv_heads = max(1, int(C.llama_model_n_head_kv(self.handle)))
        per_head = max(1, int(C.llama_model_n_embd(self.handle)) // heads)
        head_k = int(metadata(self.handle, f"{arch}.attention.key_length") or per_head)
        head_v = int(metadata(self.handle, f"{arch}.attention.value_length") or per_head)
        layers = int(C.llama_model_n_layer(self.handle))
        return Geometry(layers, kv_heads * head_k, kv_heads * head_v, head_k, head_v)

    @property
    def parameters(self) -> int:
        """How many weights the model has."""
        return int(C.llama_model_n_params(self.handle))

    @property
    def size_bytes(self) -> int:
        """Of all weights."""
        return int(C.llama_model_size(self.handle))

    @property
    def n_ctx_train(self) -> int:
        """Tokens of the longest context that it was trained on."""
        return int(C.llama_model_n_ctx_train(self.handle))

    def long_rope(self, n_cells: int) -> bool:
        """True if the cells exceed the model's original context: llama.cpp may then use other RoPE factors."""
        arch = self.architecture
        original = metadata(self.handle, f"{arch}.rope.scaling.original_context_length")
        return original is not None and n_cells > int(original)

    def weights_fingerprint(self) -> str:
        """A hash that names the weights, 32 hex digits."""
        return self.files.fingerprint

    def vocab_fingerprint(self) -> str:
        """A hash of the tokenizer's kind and the text of every token: 32 hex digits.

        Token ids mean the same wherever it is the same. Start and end token are not part of it: these are what is
        repaired when a model file is published again, and the conversations of before must go on.
        """
        return self._words.fingerprint

    def former_vocab_fingerprint(self) -> str:
        """The same as version 0.1 made it, which also held the start token, whether it is wanted, and the end token."""
        return self._words.former_fingerprint

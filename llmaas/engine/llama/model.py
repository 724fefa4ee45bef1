"""A loaded GGUF model: its text side (tokenizer, chat template) and its identity.

Law: everything here is safe on any thread. The C model lives exactly as long as this object, so a tokenizer call that
still runs when the engine closes never touches freed memory.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmaas.calls import Sampling
from llmaas.engine.base import Prepared
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.vocabulary import Vocabulary
from llmaas.engine.llama.chat import ChatTemplate
from llmaas.engine.llama.lib import C, known_token, load_model, metadata
from llmaas.records import Geometry, Message

_UNKNOWN, _CONTROL = 1 << 0, 1 << 3
"""llama.h: enum llama_token_attr."""
_HEAD_BYTES = 8 << 20
_SAMPLES = 256
_SAMPLE_BYTES = 4096
"""Of a file: what ``weights_fingerprint`` reads."""


class LlamaModel:
    """Weights and vocabulary. ``handle`` is the ``llama_model *``, ``vocab`` the ``llama_vocab *``. Raises
    ModelUnreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = load_model(path)
        weakref.finalize(self, C.llama_model_free, self.handle).atexit = False  # at exit a context may still use it
        self.vocab = C.llama_model_get_vocab(self.handle)
        self.n_vocab = int(C.llama_vocab_n_tokens(self.vocab))
        bos = known_token(C.llama_vocab_bos(self.vocab))
        self._start = bos if C.llama_vocab_get_add_bos(self.vocab) else None
        """The token that the model wants at the start of a text, if it wants one."""
        self._pieces: dict[int, bytes] = {}
        vocabulary = Vocabulary(
            self.n_vocab, functools.partial(_piece, self.vocab), functools.partial(C.llama_vocab_is_eog, self.vocab)
        )
        self.constraints = Constraints(vocabulary)
        self._control_names: tuple[str, ...] | None = None
        template = C.llama_model_chat_template(self.handle, None)
        self._chat = ChatTemplate(
            template.decode("utf-8", "replace") if template else None,
            bos=self._token_text(bos),
            eos=self._token_text(known_token(C.llama_vocab_eos(self.vocab))),
        )

    # -- text

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 16  # a token covers at least one byte, but some tokenizers add a space in front
        while True:
            found = np.empty(room, np.int32)
            pointer = found.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            n = int(C.llama_tokenize(self.vocab, data, len(data), pointer, room, False, special))
            if n >= 0:
                break
            room = -n
        tokens: list[int] = found[:n].tolist()
        # llama.cpp could do this, but it would put a second start token before a rendered template that has its own.
        if bos and self._start is not None and tokens[:1] != [self._start]:
            tokens.insert(0, self._start)
        return tokens

    @property
    def control_names(self) -> tuple[str, ...]:
        if self._control_names is None:
            kinds = _CONTROL | _UNKNOWN
            found = [t for t in range(self.n_vocab) if C.llama_vocab_get_attr(self.vocab, t) & kinds]
            self._control_names = tuple(filter(None, map(self._token_text, found)))
        return self._control_names

    def piece(self, token: int) -> bytes:
        known = self._pieces.get(token)
        if known is None:
            self._check_token(token)
            known = self._pieces[token] = _piece(self.vocab, token)
        return known

    def is_end(self, token: int) -> bool:
        self._check_token(token)
        return bool(C.llama_vocab_is_eog(self.vocab, token))

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        return self._chat.render(messages, answer=answer)

    def check_sampling(self, sampling: Sampling) -> Prepared | None:
        return self.constraints.check(sampling)

    def _check_token(self, token: int) -> None:
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token {token} is not in the vocabulary of {self.n_vocab}")

    def _token_text(self, token: int | None) -> str:
        return "" if token is None else str(C.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace"))

    @property
    def end(self) -> int:
        """A token that ends an answer; 0 where the model has none."""
        known = map(known_token, (C.llama_vocab_eos(self.vocab), C.llama_vocab_eot(self.vocab)))
        return max([token for token in known if token is not None], default=0)

    # -- identity

    @property
    def name(self) -> str:
        return metadata(self.handle, "general.name") or Path(self.file).stem

    @property
    def file(self) -> str:
        return os.fsencode(self.path.name).decode("utf-8", "replace")

    @property
    def note(self) -> str:
        return self._chat.note

    def why_not_chunkable(self) -> str:
        """Why the model's state is not rows of KV per token; empty if it may be."""
        if C.llama_model_is_recurrent(self.handle) or C.llama_model_is_hybrid(self.handle):
            return "recurrent layers keep one state for all tokens"
        return ""

    def geometry(self) -> Geometry:
        """The KV geometry according to the metadata. The engine checks it against a real state."""
        arch = metadata(self.handle, "general.architecture") or ""
        heads = max(1, int(C.llama_model_n_head(self.handle)))
        kv_heads = max(1, int(C.llama_model_n_head_kv(self.handle)))
        per_head = max(1, int(C.llama_model_n_embd(self.handle)) // heads)
        head_k = int(metadata(self.handle, f"{arch}.attention.key_length") or per_head)
        head_v = int(metadata(self.handle, f"{arch}.attention.value_length") or per_head)
        layers = int(C.llama_model_n_layer(self.handle))
        return Geometry(layers, kv_heads * head_k, kv_heads * head_v, head_k, head_v)

    def long_rope(self, n_cells: int) -> bool:
        """True if the cells exceed the model's original context: llama.cpp may then use other RoPE factors."""
        arch = metadata(self.handle, "general.architecture") or ""
        original = metadata(self.handle, f"{arch}.rope.scaling.original_context_length")
        return original is not None and n_cells > int(original)

    def weights_fingerprint(self) -> str:
        """A hash that names the weights, 32 hex digits.

        It covers the file's size, its first 8 MiB and 256 evenly spaced samples of 4 KiB, so any training or
        quantisation of the weights changes it. The first 8 MiB hold all metadata and the tensor table; of giant
        vocabularies the samples and ``vocab_fingerprint`` cover the rest. Rejected: hashing all of the file, which
        takes seconds at every start for a model of several GB. An edit of a few bytes by hand can escape this hash.
        """
        hasher = hashlib.blake2b(digest_size=16)
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            hasher.update(size.to_bytes(8, "little"))
            hasher.update(file.read(_HEAD_BYTES))
            for i in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                hasher.update(file.read(_SAMPLE_BYTES))
        return hasher.hexdigest()

    def vocab_fingerprint(self) -> str:
        """A hash of the tokenizer's kind and the text of every token: 32 hex digits.

        Token ids mean the same wherever it is the same. Start and end token are not part of it: these are what is
        repaired when a model file is published again, and the conversations of before must go on.
        """
        return self._vocab_hash((C.llama_vocab_type(self.vocab),))

    def former_vocab_fingerprint(self) -> str:
        """The same as version 0.1 made it, which also held the start token, whether it is wanted, and the end token."""
        vocab = self.vocab
        starts = self._start is not None
        return self._vocab_hash((C.llama_vocab_type(vocab), C.llama_vocab_bos(vocab), starts, C.llama_vocab_eos(vocab)))

    def _vocab_hash(self, kind: tuple[int, ...]) -> str:
        hasher = hashlib.blake2b(repr(kind).encode(), digest_size=16)
        hasher.update(b"\x00".join([C.llama_vocab_get_text(self.vocab, token) for token in range(self.n_vocab)]))
        return hasher.hexdigest()


def _piece(vocab: Any, token: int, room: int = 64) -> bytes:
    """The bytes of a token; b"" for special ones."""
    buffer = ctypes.create_string_buffer(room)
    n = int(C.llama_token_to_piece(vocab, token, buffer, room, 0, False))
    return buffer.raw[:n] if n >= 0 else _piece(vocab, token, -n)

"""Embeddings: a second ``llama_context`` of the model, which keeps what it makes of each token.

Law: the engine's thread only. It has cells of its own, for one text, and leaves those of the engine alone.

The vectors are the model's last hidden states, after its last norm: llama.cpp gives them without pooling, and this
module pools them slice by slice, as llama.cpp's own mean wants all of a text in one batch. llama.cpp computes the
logits of each token with them, which nobody asked for, and needs room for these: so few tokens come at a time.

A model that says how it is pooled is pooled so (``pooling_type``: mean, first or last token). The others were trained
to write text, and not for embeddings. For them it is the mean: the last token's state says which word comes next.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmaas.engine.base import BatchItem, EmbeddingFacts
from llmaas.engine.llama.batch import Batch, decode_failure
from llmaas.engine.llama.lib import C, collect_errors, collect_lines, known_token
from llmaas.engine.llama.memory_use import working_bytes
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.rules import check_embed
from llmaas.errors import EngineFailed, MachineError, NoNumbers
from llmaas.kv_arrays import F32

_MOST_LOGITS = 16 << 20
"""Bytes of the logits of one batch. llama.cpp has them twice."""
_FEWEST, _MOST = 8, 64
"""Tokens of a batch, however large the vocabulary is."""
_PAD = 256
"""llama.cpp makes the number of cells a multiple of it."""


class Pooling(enum.Enum):
    """How one vector comes of those of all tokens (``pooling_type`` of GGUF files)."""

    MEAN = "1"
    FIRST = "2"
    LAST = "3"


def embedding_facts(model: LlamaModel, limit: int) -> EmbeddingFacts | None:
    """What embeddings of texts of ``limit`` tokens at most are like; None if there are none."""
    limit = min(limit, int(C.llama_model_n_ctx_train(model.handle)))
    if limit < 1:
        return None
    batch = max(_FEWEST, min(_MOST, _MOST_LOGITS // (4 * model.n_vocab)))
    end = known_token(C.llama_vocab_eos(model.vocab)) if C.llama_vocab_get_add_eos(model.vocab) else None
    return EmbeddingFacts(int(C.llama_model_n_embd_out(model.handle)), limit, min(batch, limit), end)


class Embedder:
    """Embeds one text at a time. It does not keep the model alive. Raises MachineError if there is no memory."""

    def __init__(self, model: LlamaModel, facts: EmbeddingFacts) -> None:
        self._facts, self._files, self._n_vocab = facts, model.files, model.n_vocab
        self._pooling = _pooling_of(model)
        self._context: Any = embedding_context(model, facts, C.LLAMA_POOLING_TYPE_NONE)
        self._memory = C.llama_get_memory(self._context)
        self._batch = Batch(facts.slice_tokens)
        self._length = 0
        self._sum = np.zeros(facts.width)

    def embed(self, pos: int, tokens: Sequence[int], n_threads: int) -> F32:
        """See ``Engine.embed``."""
        check_embed(self._facts, pos, tokens, self._length, self._n_vocab)
        self._files.check()
        if pos == 0:
            self._begin()
        try:
            rows = self._rows(pos, tokens, n_threads)
        except BaseException:
            self._begin()
            raise
        self._length += len(tokens)
        match self._pooling:
            case Pooling.MEAN:
                self._sum += rows.sum(axis=0, dtype=np.float64)
            case Pooling.FIRST:
                self._sum = rows[0].astype(np.float64) if pos == 0 else self._sum
            case Pooling.LAST:
                self._sum = rows[-1].astype(np.float64)
        return self._pooled()

    def close(self) -> None:
        """Free the ``llama_context``. To be called once."""
        C.llama_free(self._context)
        self._context = None

    def _begin(self, *, scrub: bool = False) -> None:
        """``scrub``: what a cell holds counts for others, though a mask leaves it out, if it is NaN."""
        C.llama_memory_clear(self._memory, scrub)
        self._length, self._sum = 0, np.zeros(self._facts.width)

    def _rows(self, pos: int, tokens: Sequence[int], n_threads: int) -> F32:
        """The vectors (n_tokens, width) of the next tokens, in llama.cpp's own memory."""
        C.llama_set_n_threads(self._context, n_threads, n_threads)
        self._batch.fill([BatchItem(0, pos, tokens)])
        self._batch.want_all(len(tokens))
        if status := int(C.llama_decode(self._context, self._batch.struct)):
            raise decode_failure(status)
        self._files.check()
        if not (values := C.llama_get_embeddings(self._context)):
            raise EngineFailed("llama.cpp gives no embeddings of this model")
        rows: F32 = np.ctypeslib.as_array(values, (len(tokens), self._facts.width))
        return rows

    def _pooled(self) -> F32:
        norm = float(np.linalg.norm(self._sum))
        if not 0.0 < norm < np.inf:
            self._begin(scrub=True)
            raise NoNumbers("the model computed NaN or infinity for this text")
        return (self._sum / norm).astype(np.float32)


def embedding_memory(path: Path, limit: int) -> int:
    """Bytes that embeddings take at most, beside the model: cells, intermediate results, logits. Takes none itself."""
    model = LlamaModel(path, weights=False)
    facts = embedding_facts(model, limit)
    if facts is None:
        return 0
    with collect_lines() as lines:
        C.llama_free(embedding_context(model, facts, C.LLAMA_POOLING_TYPE_NONE))
    cells = -(-facts.limit // _PAD) * _PAD * model.geometry().token_bytes
    return cells + working_bytes(lines) + 4 * facts.slice_tokens * (model.n_vocab + facts.width)


def _pooling_of(model: LlamaModel) -> Pooling:
    try:
        return Pooling(model.pooling)
    except ValueError:
        return Pooling.MEAN


def embedding_context(model: LlamaModel, facts: EmbeddingFacts, pooling: int) -> Any:
    """A ``llama_context *`` for one text at a time. ``pooling``: llama.cpp's number. Raises MachineError."""
    params = C.llama_context_default_params()
    params.n_ctx = facts.limit
    params.n_batch = params.n_ubatch = params.n_outputs_max = facts.slice_tokens
    params.n_threads = params.n_threads_batch = 1  # each call says how many
    params.type_k = params.type_v = C.GGML_TYPE_F16
    params.n_seq_max, params.kv_unified = 1, True
    params.embeddings, params.pooling_type = True, pooling
    params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_ENABLED  # without it scores take the square of a text's length
    params.swa_full, params.no_perf = True, True
    with collect_errors() as errors:
        context = C.llama_init_from_model(model.handle, params)
    if not context:
        raise MachineError(
            f"llama.cpp cannot set up embeddings: {'; '.join(errors) or 'it gives no reason'}",
            hint="Lower --embedding-tokens or free memory.",
        )
    return context

"""Embeddings of models whose tokens see what follows them: a text is computed at once, by a ``llama_context`` for that.

Law: the engine's thread only. llama.cpp ends the process over a text that is longer than what it was set up for: so
``check_embed`` comes first.

Here llama.cpp pools, as the model's file says, or by the mean: of some models layers come after pooling. It makes room
for the logits of each token of a text, though most of these models have none: that is given back to the system after
each text, and is 60 MB meanwhile with 512 tokens of a BERT's vocabulary, 500 MB of one of 250,000 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmaas.engine.base import BatchItem, EmbeddingFacts
from llmaas.engine.llama.batch import Batch, decode_failure
from llmaas.engine.llama.context import release_logits
from llmaas.engine.llama.embedder import embedding_context
from llmaas.engine.llama.lib import AbortFlag, C, collect_lines, known_token
from llmaas.engine.llama.memory_use import working_bytes
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.rules import check_embed
from llmaas.errors import EngineFailed, NoNumbers
from llmaas.kv_arrays import F32


def encoder_facts(model: LlamaModel, limit: int) -> EmbeddingFacts | None:
    """What embeddings of texts of ``limit`` tokens at most are like; None if there are none."""
    limit = min(limit, model.n_ctx_train)
    if limit < 1:
        return None
    vocab = model.vocab
    end = None
    if C.llama_vocab_get_add_sep(vocab):
        end = known_token(C.llama_vocab_sep(vocab))
    elif C.llama_vocab_get_add_eos(vocab):
        end = known_token(C.llama_vocab_eos(vocab))
    return EmbeddingFacts(int(C.llama_model_n_embd_out(model.handle)), limit, limit, end, whole=True)


class Encoder:
    """Embeds one text at a time. It does not keep the model alive. Raises MachineError if there is no memory."""

    def __init__(self, model: LlamaModel, facts: EmbeddingFacts) -> None:
        self._facts, self._files, self._n_vocab = facts, model.files, model.n_vocab
        self._context: Any = embedding_context(model, facts, _pooling(model))
        self._compute = C.llama_encode if C.llama_model_has_encoder(model.handle) else C.llama_decode
        self._memory = C.llama_get_memory(self._context)
        self._batch = Batch(facts.limit)
        self.abort_flag = AbortFlag(self._context)

    def embed(self, pos: int, tokens: Sequence[int], n_threads: int) -> F32:
        """See ``Engine.embed``."""
        check_embed(self._facts, pos, tokens, 0, self._n_vocab)
        self._files.check()
        if self._memory:
            C.llama_memory_clear(self._memory, True)  # NaN in a cell counts for others, though a mask leaves it out
        C.llama_set_n_threads(self._context, n_threads, n_threads)
        self._batch.fill([BatchItem(0, 0, tokens)])
        self._batch.want_all(len(tokens))
        self.abort_flag.clear()
        status = int(self._compute(self._context, self._batch.struct))
        release_logits(self._context, 4 * len(tokens) * self._n_vocab)
        if status:
            raise decode_failure(status)
        self._files.check()
        if not (values := C.llama_get_embeddings_seq(self._context, 0)):
            raise EngineFailed("llama.cpp gives no embeddings of this model")
        vector = np.ctypeslib.as_array(values, (self._facts.width,)).astype(np.float64)
        norm = float(np.linalg.norm(vector))
        if not 0.0 < norm < np.inf:
            raise NoNumbers("the model computed NaN or infinity for this text")
        return (vector / norm).astype(np.float32)

    def close(self) -> None:
        """Free the ``llama_context``. To be called once."""
        C.llama_free(self._context)
        self._context = None


def encoder_memory(path: Path, limit: int) -> int:
    """Bytes that embeddings take at most, beside the model. Takes none itself."""
    model = LlamaModel(path, weights=False)
    facts = encoder_facts(model, limit)
    if facts is None:
        return 0
    with collect_lines() as lines:
        C.llama_free(embedding_context(model, facts, _pooling(model)))
    return working_bytes(lines) + 4 * facts.limit * (model.n_vocab + facts.width)


def _pooling(model: LlamaModel) -> int:
    """As the file says, or the mean: vectors of single tokens are nothing that anybody asks for."""
    known = {str(kind): int(kind) for kind in (C.LLAMA_POOLING_TYPE_CLS, C.LLAMA_POOLING_TYPE_LAST)}
    return known.get(model.pooling, int(C.LLAMA_POOLING_TYPE_MEAN))

"""The product's engine, which also gives the model's log-probabilities for every token that it is fed.

Law: nothing about KV is done in another way than in the product: prefill, export, load and sampled queries are those of
LlamaEngine. Only what the service does not need is added: logits of all rows, and llama.cpp's quantised cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.lib.engine import N_BATCH, N_UBATCH
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.context import KvType
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import C
from llmaas.kv_arrays import F32

ROWS = 128
"""Rows of logits per batch. llama.cpp has room for one row a sequence, so the engine gets so many sequences."""

CACHES: dict[KvType, float] = {"q8_0": 8.5, "q5_1": 6.0, "q4_0": 4.5}
"""llama.cpp's own quantised KV caches and their bits per value: 34, 24 and 18 bytes for 32 values (ggml-common.h)."""


class ScoringEngine(LlamaEngine):
    """``cache``: what the cells hold. Only f16 cells can be exported and loaded."""

    def __init__(self, path: Path, *, n_cells: int, n_threads: int, cache: KvType = "f16") -> None:
        super().__init__(
            path,
            n_cells=n_cells,
            n_seqs=ROWS,
            n_threads=n_threads,
            n_batch=N_BATCH,
            n_ubatch=N_UBATCH,
            type_kv=cache,
        )

    def feed(self, seq: int, tokens: Sequence[int]) -> None:
        """Prefill, in full batches, as the service does when no other call wants the engine."""
        for begin in range(0, len(tokens), self.max_batch):
            part = tokens[begin : begin + self.max_batch]
            self.step([BatchItem(seq, self.length(seq), part)])

    def force(self, seq: int, tokens: Sequence[int]) -> F32:
        """Append ``tokens`` to the sequence, and return log-probabilities in nats of shape (n, n_vocab).

        Row i is about the token that follows token i. Raises RuntimeError if llama_decode fails.
        """
        rows = np.empty((len(tokens), self.info.n_vocab), np.float32)
        for begin in range(0, len(tokens), ROWS):
            part = tokens[begin : begin + ROWS]
            batch, cells, start = self.decoder.batch, self.decoder.cells, self.length(seq)
            batch.fill([BatchItem(seq, start, part)])
            for i in range(len(part)):
                batch.struct.logits[i] = 1
            if C.llama_decode(self.decoder.context, batch.struct):
                raise RuntimeError("llama_decode failed")
            cells.extend(seq, start, start + len(part))
            found = np.ctypeslib.as_array(C.llama_get_logits(self.decoder.context), (len(part), self.info.n_vocab))
            _log_softmax(found, rows[begin : begin + ROWS])
        return rows


def _log_softmax(logits: F32, out: F32) -> None:
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    out -= np.log(np.exp(out).sum(axis=1, keepdims=True))

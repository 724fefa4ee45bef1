"""The product's engine, that also tells what the model thinks of every token it is given.

Law: nothing about KV is done here that the product does otherwise: prefill, export, load and sampled queries are
LlamaEngine's own. Only what the service has no use for is added: logits of all rows, and llama.cpp's quantised cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np

from bench.lib.engine import N_BATCH, N_UBATCH
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.context import KV_TYPES
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import C
from llmaas.records import F32

ROWS = 128
"""Rows of logits per batch. llama.cpp makes room for as many as there are sequences, so the engine gets that many."""

CACHES = {"q8_0": 8.5, "q5_1": 6.0, "q4_0": 4.5}
"""llama.cpp's own quantised KV caches and their bits per value: 34, 24 and 18 bytes for 32 values (ggml-common.h)."""


class ScoringEngine(LlamaEngine):
    """``cache``: what the cells hold, ``f16`` or one of CACHES; what is not f16 can be neither exported nor loaded."""

    def __init__(self, path: Path, *, n_cells: int, n_threads: int, cache: str = "f16") -> None:
        # The product serves f16 cells only. Here llama.cpp's quantised ones are what it is compared with.
        with patch.dict(KV_TYPES, {cache: getattr(C, f"GGML_TYPE_{cache.upper()}")}):
            super().__init__(
                path,
                n_cells=n_cells,
                n_seqs=ROWS,
                n_threads=n_threads,
                n_batch=N_BATCH,
                n_ubatch=N_UBATCH,
                type_kv=cast(Any, cache),
            )

    def feed(self, seq: int, tokens: Sequence[int]) -> None:
        """Prefill, in full batches as the service does where nobody else wants the engine."""
        for begin in range(0, len(tokens), self.max_batch):
            part = tokens[begin : begin + self.max_batch]
            self.step([BatchItem(seq, self.length(seq), part)])

    def force(self, seq: int, tokens: Sequence[int]) -> F32:
        """Append ``tokens``; (n, n_vocab) log-probabilities in nats, row i of what follows token i."""
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

"""The engine of a model that makes embeddings only: a BERT, or another whose tokens see what follows them.

Law: it has no cells that anything comes into. What needs sequences fails; the service refuses it long before
(``ModelInfo.writes``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, EmbeddingFacts, Halt, Row
from llmaas.engine.llama.encoder import Encoder, encoder_facts
from llmaas.engine.llama.lib import build
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.text_side import TextSide
from llmaas.engine.row_pipe import Telling
from llmaas.engine.rules import check_seq
from llmaas.errors import EngineFailed, LlmaasError
from llmaas.kv_arrays import F32, Bytes, KvSlab, Queries
from llmaas.records import ModelInfo

_CELLS = 1
"""The planner has a cell at least."""


class LlamaEmbeddingEngine(TextSide):
    """Engine over a model that has been loaded. ``embedding_tokens``: the longest text; 0: there are no embeddings."""

    n_cells, n_seqs, max_batch = _CELLS, 1, 1
    rope, windows = None, ()

    def __init__(self, model: LlamaModel, *, n_threads: int, embedding_tokens: int = 512) -> None:
        super().__init__(model)
        self._most_threads = self._n_threads = n_threads
        self.embedding: EmbeddingFacts | None = encoder_facts(model, embedding_tokens)
        self._encoder: Encoder | None = None
        self.info = _info(model)

    # -- embeddings

    def embed(self, pos: int, tokens: Sequence[int]) -> F32:
        self._enter()
        if self.embedding is None:
            raise EngineFailed("this engine computes no embeddings")
        if self._encoder is None:
            self._encoder = Encoder(self._text(), self.embedding)
        return self._encoder.embed(pos, tokens, self._n_threads)

    def end_embedding(self) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()

    def set_threads(self, n: int, *, spin: bool = False, apart: bool = False) -> None:
        self._enter()
        if not 1 <= n <= self._most_threads:
            raise ValueError(f"threads must be in 1 .. {self._most_threads}, not {n}")
        self._n_threads = n

    def abort(self) -> None:
        if (encoder := self._encoder) is not None:
            encoder.abort_flag.set()

    def close(self) -> None:
        self.end_embedding()
        self._let_go()

    # -- what there is none of

    def length(self, seq: int) -> int:
        self._enter()
        check_seq(seq, self.n_seqs)
        return 0

    def drop(self, seq: int, start: int) -> None:
        self.length(seq)

    def copy(self, src: int, dst: int, stop: int) -> None:
        self._refuse()

    def sampler_failure(self, sampler: int) -> LlmaasError | None:
        return None

    def set_sampler(
        self, sampler: int, sampling: Sampling | None, past: Sequence[int] = (), answer: Sequence[int] = ()
    ) -> None:
        if sampling is not None:
            self._refuse()

    def load_adapter(self, name: str, path: Path) -> None:
        self._refuse()

    def unload_adapter(self, name: str) -> None:
        self._refuse()

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        self._refuse()

    def steps(
        self,
        items: Sequence[BatchItem],
        most: int,
        seconds: float,
        halt: Halt,
        adapter: str = "",
        telling: Telling | None = None,
    ) -> Sequence[Row]:
        self._refuse()

    def logits(self, item: int = -1) -> F32:
        self._refuse()

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        self._refuse()

    def blank(self, n_tokens: int) -> KvSlab:
        self._refuse()

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        self._refuse()

    def begin_load(self, seq: int, start: int, n_tokens: int) -> list[KvSlab] | None:
        self._refuse()

    def export_state(self, seq: int) -> Bytes:
        self._refuse()

    def load_state(self, seq: int, n_tokens: int, state: Bytes) -> None:
        self._refuse()

    def key_weights(self) -> F32 | None:
        return None

    def take_queries(self, seq: int) -> Queries | None:
        return None

    def _refuse(self) -> NoReturn:
        raise EngineFailed("this model makes embeddings only, and computes no sequences")


def _info(model: LlamaModel) -> ModelInfo:
    meaning = f"{model.weights_fingerprint()} embeddings {build()}"
    return ModelInfo(
        name=model.name,
        fingerprint=hashlib.blake2b(meaning.encode(), digest_size=16).hexdigest(),
        vocab=model.vocab_fingerprint(),
        former_vocab=model.former_vocab_fingerprint(),
        geometry=model.geometry(),
        n_ctx_train=model.n_ctx_train,
        n_vocab=model.n_vocab,
        size_bytes=model.size_bytes,
        chunkable=False,
        writes=False,
        note=f"the model {model.kind.value} ({model.architecture})",
        file=model.file,
    )

"""The real engine: a GGUF model, one llama.cpp context, and cells that all sequences share.

Law: the only thread that may touch the C context is the one that built the engine; a C call that fails leaves
every sequence as it was. Facts of llama.cpp that this package relies on, and the tests that check them, are in
docs/engine.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, EmbeddingFacts, Halt, Row
from llmaas.engine.llama.context import ContextSettings, KvType
from llmaas.engine.llama.decoder import LlamaDecoder
from llmaas.engine.llama.embedder import Embedder, embedding_facts
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.rope_memo import RopeMemo
from llmaas.engine.llama.slabs import Slabs
from llmaas.engine.llama.startup import examine_model
from llmaas.engine.llama.text_side import TextSide
from llmaas.engine.row_pipe import Telling
from llmaas.engine.rules import (
    check_blank,
    check_copy,
    check_drop,
    check_export,
    check_export_state,
    check_load,
    check_load_state,
    check_seq,
)
from llmaas.errors import EngineFailed, LlmaasError
from llmaas.kv_arrays import F32, Bytes, KvSlab, Queries, Rope
from llmaas.records import ModelInfo


class LlamaEngine(TextSide):
    """Engine over a GGUF file. ``n_cells`` is rounded up to what llama.cpp allocates (a multiple of 256).

    ``full_windows``: see ``ContextSettings``.
    ``embedding_tokens``: the longest text that embeddings are computed of; 0: none are.
    ``spare_bytes`` bounds the memory that is kept for the next slabs (see ``Buffers``). ``rope_memo`` makes the next
    start of the same model quicker. ``decoder``: the parts below the port, for benches that measure llama.cpp itself.
    Raises ModelUnreadable if the file cannot be served, MachineError if there is no memory for the cells.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_cells: int,
        n_seqs: int = 32,
        n_threads: int,
        n_batch: int = 512,
        n_ubatch: int = 128,
        type_kv: KvType = "f16",
        full_windows: bool = True,
        embedding_tokens: int = 512,
        spare_bytes: int = 9 << 20,
        rope_memo: RopeMemo | None = None,
        open_model: Callable[[Path], LlamaModel] = LlamaModel,
    ) -> None:
        settings = ContextSettings(n_cells, n_seqs, n_threads, n_batch, n_ubatch, type_kv, full_windows)
        self._n_seqs, self._n_threads = n_seqs, n_threads
        self._embedder: Embedder | None = None
        model = open_model(path)
        model.refuse_without_text()
        super().__init__(model)
        self.decoder = LlamaDecoder(model, settings)
        self._embedding = embedding_facts(model, embedding_tokens)
        try:
            self._facts = examine_model(model, self.decoder, type_kv, spare_bytes, rope_memo)
        except BaseException:
            self.close()
            raise
        self.decoder.numbers.slabs = self._facts.slabs
        if self._facts.info.chunkable:
            self.decoder.probe.start()

    # -- what it is

    @property
    def info(self) -> ModelInfo:
        return self._facts.info

    @property
    def n_cells(self) -> int:
        return self.decoder.cells.n_cells

    @property
    def n_seqs(self) -> int:
        return self._n_seqs

    @property
    def max_batch(self) -> int:
        return self.decoder.max_batch

    # -- steps

    def set_sampler(
        self, sampler: int, sampling: Sampling | None, past: Sequence[int] = (), answer: Sequence[int] = ()
    ) -> None:
        self._enter()
        self.decoder.samplers.set(sampler, sampling, past, answer)

    def sampler_failure(self, sampler: int) -> LlmaasError | None:
        self._enter()
        return self.decoder.samplers.failure(sampler)

    def load_adapter(self, name: str, path: Path) -> None:
        self._enter()
        self.decoder.adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        self._enter()
        self.decoder.adapters.unload(name)

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        self._enter()
        return self.decoder.step(items, adapter, draw_s=draw_s if self.info.chunkable else math.inf)

    def steps(
        self,
        items: Sequence[BatchItem],
        most: int,
        seconds: float,
        halt: Halt,
        adapter: str = "",
        telling: Telling | None = None,
    ) -> Sequence[Row]:
        self._enter()
        return self.decoder.steps(items, most, seconds, halt, adapter, telling)

    def logits(self, item: int = -1) -> F32:
        self._enter()
        return self.decoder.logits(item)

    # -- sequences

    def length(self, seq: int) -> int:
        self._enter(seq)
        return self.decoder.cells.lengths[seq]

    def drop(self, seq: int, start: int) -> None:
        self._enter(seq)
        check_drop(start)
        self.decoder.drop(seq, start)

    def copy(self, src: int, dst: int, stop: int) -> None:
        self._enter(src, dst)
        check_copy(self.decoder.cells.lengths, src, dst, stop)
        self.decoder.cells.share(src, dst, stop)

    # -- KV in and out

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        self._enter(seq)
        check_export(self.decoder.cells.lengths, seq, start, stop)
        return self._slabs().export(seq, start, stop)

    def blank(self, n_tokens: int) -> KvSlab:
        check_blank(n_tokens)
        return self._slabs().blank(n_tokens)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        self._enter(seq)
        check_load(self.decoder.cells.lengths, seq, start)
        self._slabs().load(seq, start, slab)

    def begin_load(self, seq: int, start: int, n_tokens: int) -> list[KvSlab] | None:
        self._enter(seq)
        check_load(self.decoder.cells.lengths, seq, start)
        check_blank(n_tokens)
        return self._slabs().begin_load(seq, start, n_tokens)

    # -- whole states

    def export_state(self, seq: int) -> Bytes:
        self._enter(seq)
        self._refuse_without_states()
        check_export_state(self.decoder.cells.lengths, seq)
        return self.decoder.cells.read_whole(seq)

    def load_state(self, seq: int, n_tokens: int, state: Bytes) -> None:
        self._enter(seq)
        self._refuse_without_states()
        check_load_state(self.decoder.cells.lengths, seq, n_tokens)
        self.decoder.cells.write_whole(seq, n_tokens, state)

    # -- what the model looks for in the KV

    @property
    def rope(self) -> Rope | None:
        return self._facts.rope

    @property
    def windows(self) -> tuple[int, ...]:
        return self._facts.slabs.windows if self._facts.slabs else ()

    def key_weights(self) -> F32 | None:
        self._enter()
        return self.decoder.probe.queries.key_weights(self._facts.rope)

    def take_queries(self, seq: int) -> Queries | None:
        self._enter(seq)
        return self.decoder.probe.queries.take(seq)

    # -- embeddings

    @property
    def embedding(self) -> EmbeddingFacts | None:
        return self._embedding

    def embed(self, pos: int, tokens: Sequence[int]) -> F32:
        self._enter()
        if self._embedding is None:
            raise EngineFailed("this engine computes no embeddings")
        if self._embedder is None:
            self._embedder = Embedder(self._text(), self._embedding)
        return self._embedder.embed(pos, tokens, self.decoder.n_threads)

    def end_embedding(self) -> None:
        if self._embedder is not None:
            self._embedder.close()
            self._embedder = None

    # -- threads and the end

    def set_threads(self, n: int, *, spin: bool = False, apart: bool = False) -> None:
        self._enter()
        if not 1 <= n <= self._n_threads:
            raise ValueError(f"threads must be in 1 .. {self._n_threads}, not {n}")
        self.decoder.set_threads(n, spin=spin, apart=apart)

    def abort(self) -> None:
        self.decoder.abort_flag.set()

    def close(self) -> None:
        self.end_embedding()
        self.decoder.close()
        self._let_go()  # after the context, which looks at it

    # -- inside

    def _slabs(self) -> Slabs:
        if self._facts.slabs is None:
            raise EngineFailed(f"the state of this model cannot be chunked: {self._facts.info.note}")
        return self._facts.slabs

    def _refuse_without_states(self) -> None:
        if self._facts.info.state is None:
            raise EngineFailed("states of this model do not go out and in as a whole")

    def _enter(self, *seqs: int) -> None:
        super()._enter()
        for seq in seqs:
            check_seq(seq, self._n_seqs)

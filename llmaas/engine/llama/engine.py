"""The real engine: one llama.cpp context whose cells all sequences share.

Law: the only thread that may touch the C context is the one that built the engine; a C call that fails leaves
every sequence as it was. Facts of llama.cpp that this file relies on, and the tests that check them, are in
docs/engine.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Halt, plain_steps
from llmaas.engine.llama.adapters import LlamaAdapters
from llmaas.engine.llama.batch import Batch, check, failure
from llmaas.engine.llama.cells import SequenceCells, window_of
from llmaas.engine.llama.decode_run import DecodeRun
from llmaas.engine.llama.learn_layout import learn, order, shown
from llmaas.engine.llama.lib import AbortFlag, C
from llmaas.engine.llama.model import LlamaModel, context_params, new_context
from llmaas.engine.llama.query_probe import QueryProbe
from llmaas.engine.llama.rope import find_rope
from llmaas.engine.llama.sampling import Samplers
from llmaas.engine.llama.slabs import Slabs
from llmaas.engine.llama.state_layout import Unchunkable
from llmaas.errors import EngineFailed
from llmaas.records import CHUNK_TOKENS, F16, F32, Geometry, KvSlab, Message, ModelInfo, Queries, Rope

_log = logging.getLogger(__name__)
_KV_MEANING = "llama.cpp, K after RoPE, V, flash attention"
_KV_TYPES = {"f16": C.GGML_TYPE_F16}
"""What cells may hold. Quantised cells (q8_0) would need slabs of another kind."""


class LlamaEngine:
    """Engine over a GGUF file. ``n_cells`` is rounded up to what llama.cpp allocates (a multiple of 256).

    ``spare_bytes`` bounds the memory that is kept for the next slabs (see ``Buffers``).
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
        type_kv: Literal["f16"] = "f16",
        spare_bytes: int = 12 << 20,
    ) -> None:
        most = int(C.llama_max_parallel_sequences()) - 2
        if not 1 <= n_seqs <= most:
            raise ValueError(f"n_seqs must be in 1 .. {most}, not {n_seqs}")
        if type_kv not in _KV_TYPES:
            raise ValueError(f"type_kv must be one of {', '.join(_KV_TYPES)}, not {type_kv}")
        if n_cells < 1 or n_threads < 1 or not 1 <= n_ubatch <= n_batch:
            raise ValueError(f"out of range: n_cells={n_cells} n_threads={n_threads} batch={n_batch}/{n_ubatch}")
        self._thread = threading.get_ident()
        self._ctx: Any = None
        self._model: LlamaModel | None = LlamaModel(path)
        self._n_vocab = self._text().n_vocab
        self._n_seqs, self._n_threads = n_seqs, n_threads
        self._lengths = [0] * n_seqs
        self._samplers = Samplers(self._text().vocab, self._n_vocab)
        self._drew: list[int | None] = []  # the rows of logits of the last step's items
        try:
            window = window_of(self._text().handle)
            params = context_params(n_cells, n_seqs + (2 if window else 1), n_threads, n_batch, n_ubatch)
            params.type_k = params.type_v = _KV_TYPES[type_kv]
            n_head = int(C.llama_model_n_head(self._text().handle))
            self._queries = QueryProbe(self._text().geometry(), n_head, n_batch=n_batch, n_seqs=n_seqs)
            self._queries.install(params)
            self._ctx = new_context(self._text(), params)
            self._cells = SequenceCells(self._ctx, n_seqs, window)
            self._adapters = LlamaAdapters(self._text().handle, self._ctx)
            self._abort = AbortFlag(self._ctx)
            self._batch = Batch(n_batch)
            self._run = DecodeRun(self._ctx, self._text().vocab, self._batch, n_seqs)
            self._n_cells = int(C.llama_n_ctx(self._ctx))
            self._max_batch = int(C.llama_n_batch(self._ctx))  # no more than cells; it asserts on a larger batch
            if window:  # a longer batch could give away the cells of its own first tokens
                self._max_batch = min(self._max_batch, window)
            self._slabs: Slabs | None = None
            self._info = self._examine(type_kv, spare_bytes)
            self._rope: Rope | None = None
            if self._info.chunkable:
                self._rope = find_rope(self._text().handle, self._info.geometry.head_dim_k, self._keys_alone)
                self._queries.start()
        except BaseException:
            self.close()
            raise

    # -- what it is

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def n_cells(self) -> int:
        return self._n_cells

    @property
    def n_seqs(self) -> int:
        return self._n_seqs

    @property
    def max_batch(self) -> int:
        return self._max_batch

    # -- text

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        return self._text().tokenize(text, special=special, bos=bos)

    def piece(self, token: int) -> bytes:
        return self._text().piece(token)

    def is_end(self, token: int) -> bool:
        return self._text().is_end(token)

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        return self._text().render(messages, answer=answer)

    def check_sampling(self, sampling: Sampling) -> None:
        self._text().check_sampling(sampling)

    # -- sequences

    def set_sampler(self, sampler: int, sampling: Sampling | None, past: Sequence[int] = ()) -> None:
        self._enter()
        self._samplers.set(sampler, sampling, past)

    def load_adapter(self, name: str, path: Path) -> None:
        self._enter()
        self._adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        self._enter()
        self._adapters.unload(name)

    def step(self, items: Sequence[BatchItem], adapter: str = "") -> list[int | None]:
        self._enter()
        self._check(items)
        self._adapters.use(adapter)
        last = self._batch.fill(items)
        self._abort.clear()
        self._queries.watch(items)
        self._drew = []
        status = int(C.llama_decode(self._ctx, self._batch.struct))
        if status != 0:
            self._undo(items)
            raise failure(status)
        self._queries.collect()
        drawn: list[int | None] = []
        for item, index in zip(items, last, strict=True):
            self._lengths[item.seq] += len(item.tokens)
            self._cells.hold(item.seq, item.pos, self._lengths[item.seq])
            if item.sampler is None:
                drawn.append(None)
            else:
                drawn.append(self._samplers.draw(item.sampler, self._ctx, index))
            self._drew.append(None if item.sampler is None else index)
        return drawn

    def steps(
        self, items: Sequence[BatchItem], most: int, seconds: float, halt: Halt, adapter: str = ""
    ) -> list[list[int]]:
        self._enter()
        self._check(items)
        chains = [self._samplers.chain(item.sampler) for item in items if item.sampler is not None]
        if not self._run.able or None in chains:
            return plain_steps(self, items, 1, seconds, halt, adapter)
        most = min(most, self._queries.ahead(items))
        self._adapters.use(adapter)
        self._batch.fill(items)
        self._abort.clear()
        rows, status = self._run.run(chains, most, seconds, halt, self._queries.prepare(items, most))
        if status != 0:
            for item in items:
                self._cells.remove(item.seq, item.pos + len(rows))
            if not len(rows):
                raise failure(status)
        else:
            self._queries.collect()
        for item in items:
            self._lengths[item.seq] += len(rows)
            self._cells.hold(item.seq, item.pos, self._lengths[item.seq])
        self._drew = list(range(len(items)))
        drawn: list[list[int]] = rows.tolist()
        return drawn

    def length(self, seq: int) -> int:
        self._enter(seq)
        return self._lengths[seq]

    def logits(self, item: int = -1) -> F32:
        self._enter()
        if not self._drew or (index := self._drew[item]) is None:
            raise ValueError("that item of the last step drew nothing")
        return np.ctypeslib.as_array(C.llama_get_logits_ith(self._ctx, index), (self._n_vocab,)).copy()

    def drop(self, seq: int, start: int) -> None:
        self._enter(seq)
        if start < 0:
            raise ValueError(f"cannot drop from position {start}")
        if start < self._lengths[seq]:
            self._cells.remove(seq, start)
            self._lengths[seq] = start
            self._queries.drop(seq, start)

    def copy(self, src: int, dst: int, stop: int) -> None:
        self._enter(src, dst)
        if self._lengths[dst]:
            raise ValueError(f"sequence {dst} is not empty")
        if not 0 <= stop <= self._lengths[src]:
            raise ValueError(f"sequence {src} has {self._lengths[src]} positions, not {stop}")
        if stop:
            self._cells.share(src, dst, stop)
        self._lengths[dst] = stop

    # -- KV in and out

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        self._enter(seq)
        if not 0 <= start < stop <= self._lengths[seq]:
            raise ValueError(f"sequence {seq} has no positions {start} .. {stop - 1}")
        return self._chunks().export(seq, start, stop)

    def blank(self, n_tokens: int) -> KvSlab:
        if n_tokens < 1:
            raise ValueError(f"a slab holds at least one token, not {n_tokens}")
        return self._chunks().blank(n_tokens)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        self._enter(seq)
        if start != self._lengths[seq]:
            raise ValueError(f"sequence {seq} has {self._lengths[seq]} positions: cannot load at {start}")
        self._chunks().load(seq, start, slab)
        self._lengths[seq] += slab.n_tokens

    # -- what the model looks for in the KV

    @property
    def rope(self) -> Rope | None:
        return self._rope

    @property
    def windows(self) -> tuple[int, ...]:
        return self._slabs.windows if self._slabs else ()

    def key_weights(self) -> F32 | None:
        self._enter()
        return self._queries.key_weights(self._rope)

    def take_queries(self, seq: int) -> Queries | None:
        self._enter(seq)
        return self._queries.take(seq)

    def set_threads(self, n: int) -> None:
        self._enter()
        if not 1 <= n <= self._n_threads:
            raise ValueError(f"threads must be in 1 .. {self._n_threads}, not {n}")
        C.llama_set_n_threads(self._ctx, n, n)

    def abort(self) -> None:
        self._abort.set()

    def close(self) -> None:
        if self._ctx is not None:
            self._samplers.close()
            C.llama_free(self._ctx)
            self._ctx = None
        self._model = None  # after the context, which looks at it; freed as soon as no text method is using it

    # -- inside

    def _text(self) -> LlamaModel:
        model = self._model
        if model is None:
            raise EngineFailed("the engine is closed")
        return model

    def _enter(self, *seqs: int) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("the engine was called from another thread than its own")
        if self._ctx is None:
            raise EngineFailed("the engine is closed")
        for seq in seqs:
            if not 0 <= seq < self._n_seqs:
                raise ValueError(f"sequence {seq} is not in 0 .. {self._n_seqs - 1}")

    def _check(self, items: Sequence[BatchItem]) -> None:
        check(items, self._lengths, self._samplers, self._n_vocab, self._max_batch)

    def _undo(self, items: Sequence[BatchItem]) -> None:
        """Remove what a failed decode left: llama.cpp keeps the part-batches that it had finished."""
        for item in items:
            self._cells.remove(item.seq, item.pos)

    def _chunks(self) -> Slabs:
        if self._slabs is None:
            raise EngineFailed(f"the state of this model cannot be chunked: {self._info.note}")
        return self._slabs

    def _examine(self, type_kv: str, spare_bytes: int) -> ModelInfo:
        """Learn the state's layout from real tokens, check it both ways, and say who the model is."""
        model = self._text()
        notes, promised = [model.note], model.geometry()
        geometry = promised
        try:
            geometry = self._learn(model, promised, spare_bytes)
            self._check_round_trip()
        except Unchunkable as reason:
            self._slabs = None
            notes.append(f"contexts cannot be chunked: {reason}")
        self.drop(0, 0)
        meaning = f"{model.weights_fingerprint()} {type_kv} {_KV_MEANING} {model.long_rope(self._n_cells)}"
        info = ModelInfo(
            name=model.name,
            fingerprint=hashlib.blake2b(meaning.encode(), digest_size=16).hexdigest(),
            vocab=model.vocab_fingerprint(),
            geometry=geometry,
            n_ctx_train=int(C.llama_model_n_ctx_train(model.handle)),
            n_vocab=model.n_vocab,
            size_bytes=int(C.llama_model_size(model.handle)),
            chunkable=self._slabs is not None,
            note="; ".join(note for note in notes if note),
        )
        _log.info("%s: %d cells, chunkable: %s", info.name, self._n_cells, info.chunkable)
        return info

    def _keys_alone(self, token: int, position: int) -> F32:
        """The keys (n_layer, k_dim) of a token at ``position`` with nothing before it."""
        self._batch.fill([BatchItem(0, position, [token % self._n_vocab])])
        if status := int(C.llama_decode(self._ctx, self._batch.struct)):
            raise failure(status)
        self._lengths[0] = position + 1  # of which only the last is there
        keys = self.export(0, position, position + 1).k[:, 0].astype(np.float32)
        self.drop(0, 0)
        return keys

    def _learn(self, model: LlamaModel, promised: Geometry, spare_bytes: int) -> Geometry:
        """Set up slabs by what a state of three decoded tokens shows; they stay in sequence 0. Raises Unchunkable."""
        for pos in range(3):
            self.step([BatchItem(0, pos, [pos])])
        if why := model.why_not_chunkable():
            raise Unchunkable(why)
        layout = learn(self._cells.read_whole(0), 3)
        geometry = shown(promised, layout)
        self._slabs = Slabs(self._cells, self._n_cells, layout, spare_bytes)
        if layout.copied:
            if self._cells.window < CHUNK_TOKENS:
                raise Unchunkable(f"layers see a window of {self._cells.window} tokens, less than a chunk")
            layout = dataclasses.replace(layout, layers=order(self._reach(layout.sections[0].n_layer)))
            self._slabs = Slabs(self._cells, self._n_cells, layout, spare_bytes)
        return geometry

    def _reach(self, n_first: int) -> npt.NDArray[np.bool_]:
        """Which of a fourth token's rows of K depend on V of the first sections' rows before it (see ``order``)."""
        slab = self.export(0, 0, 3)
        plain = self._next_keys(slab)
        changed = []
        for row in range(n_first):
            slab.v[row] *= -1
            changed.append((self._next_keys(slab) != plain).any(axis=1))
            slab.v[row] *= -1
        return np.stack(changed)

    def _next_keys(self, slab: KvSlab) -> F16:
        """K (n_layer, k_dim) of one more token after those of ``slab``, in sequence 0."""
        self.drop(0, 0)
        self.load(0, 0, slab)
        self.step([BatchItem(0, slab.n_tokens, [slab.n_tokens])])
        return self.export(0, slab.n_tokens, slab.n_tokens + 1).k[:, 0]

    def _check_round_trip(self) -> None:
        """Raise EngineFailed unless sequence 0 comes back as it went out."""
        slab = self.export(0, 0, 3)
        self.drop(0, 0)
        self.load(0, 0, slab)
        again = self.export(0, 0, 3)
        if not (np.array_equal(slab.k, again.k) and np.array_equal(slab.v, again.v)):
            raise EngineFailed("llama.cpp gave back other KV than it was given")

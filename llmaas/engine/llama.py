"""F6. The real engine: one llama.cpp context whose cells all sequences share.

Law: the only thread that may touch the C context is the one that built the engine; a C call that fails leaves
every sequence as it was. Facts of llama.cpp that this file relies on, and the tests that check them, are in
docs/engine.md.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmaas.engine.base import Aborted, BatchItem, CellsFull
from llmaas.engine.llama_batch import Batch
from llmaas.engine.llama_lib import AbortFlag, C, hear_errors
from llmaas.engine.llama_model import LlamaModel
from llmaas.engine.llama_sampling import Samplers
from llmaas.engine.llama_state import Blob, Buffers, StateLayout, Unchunkable, learn
from llmaas.errors import EngineFailed, MachineError, ModelUnreadable
from llmaas.records import CHUNK_TOKENS, Geometry, KvSlab, Message, ModelInfo, Sampling

_log = logging.getLogger(__name__)
_KV_MEANING = "llama.cpp, K after RoPE, V, flash attention"
_KV_TYPES = {"f16": C.GGML_TYPE_F16}
"""What cells may hold. Quantised cells (q8_0) would need slabs of another kind."""
_BYTE = ctypes.POINTER(ctypes.c_uint8)


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
        most = int(C.llama_max_parallel_sequences()) - 1
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
        self._n_seqs, self._scratch = n_seqs, n_seqs
        self._lengths = [0] * n_seqs
        self._samplers = Samplers()
        self._sampled: int | None = None
        try:
            params = _params(n_cells, n_seqs, n_threads, n_batch, n_ubatch)
            params.type_k = params.type_v = _KV_TYPES[type_kv]
            self._ctx = _context(self._text(), params)
            self._memory = C.llama_get_memory(self._ctx)
            self._abort = AbortFlag(self._ctx)
            self._batch = Batch(n_batch)
            self._n_cells = int(C.llama_n_ctx(self._ctx))
            self._max_batch = int(C.llama_n_batch(self._ctx))  # no more than cells; it asserts on a larger batch
            self._layout: StateLayout | None = None
            self._info = self._examine(type_kv, spare_bytes)
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

    # -- sequences

    def set_sampler(self, seq: int, sampling: Sampling | None) -> None:
        self._enter(seq)
        self._samplers.set(seq, sampling)

    def step(self, items: Sequence[BatchItem]) -> list[int | None]:
        self._enter()
        self._check(items)
        last = self._batch.fill(items)
        self._abort.clear()
        self._sampled = None
        status = int(C.llama_decode(self._ctx, self._batch.struct))
        if status != 0:
            self._undo(items)
            raise _failure(status)
        drawn: list[int | None] = []
        for item, index in zip(items, last, strict=True):
            self._lengths[item.seq] += len(item.tokens)
            if item.sample:
                self._sampled = index
            drawn.append(self._samplers.draw(item.seq, self._ctx, index) if item.sample else None)
        return drawn

    def length(self, seq: int) -> int:
        self._enter(seq)
        return self._lengths[seq]

    def logits(self) -> npt.NDArray[np.float32]:
        self._enter()
        if self._sampled is None:
            raise ValueError("the last step sampled nothing")
        row = C.llama_get_logits_ith(self._ctx, self._sampled)
        return np.ctypeslib.as_array(row, (self._n_vocab,)).copy()

    def drop(self, seq: int, start: int) -> None:
        self._enter(seq)
        if start < 0:
            raise ValueError(f"cannot drop from position {start}")
        if start < self._lengths[seq]:
            self._remove(seq, start)
            self._lengths[seq] = start

    def copy(self, src: int, dst: int, stop: int) -> None:
        self._enter(src, dst)
        if self._lengths[dst]:
            raise ValueError(f"sequence {dst} is not empty")
        if not 0 <= stop <= self._lengths[src]:
            raise ValueError(f"sequence {src} has {self._lengths[src]} positions, not {stop}")
        if stop:
            C.llama_memory_seq_cp(self._memory, src, dst, 0, stop)
        self._lengths[dst] = stop

    # -- KV in and out

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        self._enter(seq)
        if not 0 <= start < stop <= self._lengths[seq]:
            raise ValueError(f"sequence {seq} has no positions {start} .. {stop - 1}")
        layout = self._chunks()
        buffer = self._buffers.take(layout.size(stop - start))
        C.llama_memory_seq_cp(self._memory, seq, self._scratch, start, stop)
        C.llama_state_seq_get_data(self._ctx, buffer.ctypes.data_as(_BYTE), buffer.size, self._scratch)
        self._remove(self._scratch, 0)
        try:
            return layout.read(buffer, stop - start, start).slab()
        except ValueError as error:
            raise EngineFailed(f"llama.cpp exported positions {start} .. {stop - 1} wrongly: {error}") from error

    def blank(self, n_tokens: int) -> KvSlab:
        if n_tokens < 1:
            raise ValueError(f"a slab holds at least one token, not {n_tokens}")
        layout = self._chunks()
        return layout.blank(self._buffers.take(layout.size(n_tokens)), n_tokens).slab()

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        self._enter(seq)
        if start != self._lengths[seq]:
            raise ValueError(f"sequence {seq} has {self._lengths[seq]} positions: cannot load at {start}")
        blob, layout = slab.owner, self._chunks()
        if not isinstance(blob, Blob) or blob.n_tokens != slab.n_tokens:
            raise ValueError("only a slab from blank or export can be loaded")
        blob.place(start)
        size, buffer = blob.buffer.size, blob.buffer.ctypes.data_as(_BYTE)
        if not layout.intact(blob):
            raise EngineFailed("the slab's headers were overwritten")
        # With sound headers only one thing can fail in llama.cpp: to find free cells.
        if slab.n_tokens > self._n_cells or not C.llama_state_seq_set_data(self._ctx, buffer, size, self._scratch):
            self._remove(self._scratch, 0)
            raise CellsFull(f"no {slab.n_tokens} free cells of {self._n_cells}")
        C.llama_memory_seq_cp(self._memory, self._scratch, seq, start, start + slab.n_tokens)
        self._remove(self._scratch, 0)
        self._lengths[seq] += slab.n_tokens

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
        total = 0
        for item in items:
            self._enter(item.seq)
            if item.pos != self._lengths[item.seq]:
                raise ValueError(f"sequence {item.seq} is {self._lengths[item.seq]} long: cannot step at {item.pos}")
            if not item.tokens:
                raise ValueError("an item holds at least one token")
            if min(item.tokens) < 0 or max(item.tokens) >= self._n_vocab:
                raise ValueError(f"a token is not in the vocabulary of {self._n_vocab}")
            if item.sample and item.seq not in self._samplers:
                raise ValueError(f"sequence {item.seq} has no sampler")
            total += len(item.tokens)
        if not 0 < total <= self._max_batch:
            raise ValueError(f"a step holds 1 .. {self._max_batch} tokens, not {total}")
        if len({item.seq for item in items}) != len(items):
            raise ValueError("a sequence may appear once in a step")

    def _undo(self, items: Sequence[BatchItem]) -> None:
        """Remove what a failed decode left: llama.cpp keeps the part-batches that it had finished."""
        for item in items:
            self._remove(item.seq, item.pos)

    def _remove(self, seq: int, start: int) -> None:
        if not C.llama_memory_seq_rm(self._memory, seq, start, -1):
            raise EngineFailed("this model's state cannot be cut in the middle")

    def _chunks(self) -> StateLayout:
        if self._layout is None:
            raise EngineFailed(f"the state of this model cannot be chunked: {self._info.note}")
        return self._layout

    def _examine(self, type_kv: str, spare_bytes: int) -> ModelInfo:
        """Learn the state's layout from real tokens, check it both ways, and say who the model is."""
        model = self._text()
        notes, promised = [model.note], model.geometry()
        geometry = promised
        try:
            self._layout, geometry = self._learn(model, promised)
            self._buffers = Buffers(self._layout.size(CHUNK_TOKENS), spare_bytes)
            self._check_round_trip()
        except Unchunkable as reason:
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
            chunkable=self._layout is not None,
            note="; ".join(note for note in notes if note),
        )
        _log.info("%s: %d cells, chunkable: %s", info.name, self._n_cells, info.chunkable)
        return info

    def _learn(self, model: LlamaModel, promised: Geometry) -> tuple[StateLayout, Geometry]:
        """What a state of three decoded tokens shows; they stay in sequence 0. Raises Unchunkable."""
        for pos in range(3):
            self.step([BatchItem(0, pos, [pos], sample=False)])
        if why := model.why_not_chunkable():
            raise Unchunkable(why)
        buffer = np.empty(int(C.llama_state_seq_get_size(self._ctx, 0)), np.uint8)
        C.llama_state_seq_get_data(self._ctx, buffer.ctypes.data_as(_BYTE), buffer.size, 0)
        layout = learn(buffer, 3)
        return layout, _geometry(promised, layout)

    def _check_round_trip(self) -> None:
        """Raise EngineFailed unless sequence 0 comes back as it went out."""
        slab = self.export(0, 0, 3)
        self.drop(0, 0)
        self.load(0, 0, slab)
        again = self.export(0, 0, 3)
        if not (np.array_equal(slab.k, again.k) and np.array_equal(slab.v, again.v)):
            raise EngineFailed("llama.cpp gave back other KV than it was given")


def _params(n_cells: int, n_seqs: int, n_threads: int, n_batch: int, n_ubatch: int) -> Any:
    params = C.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_cells, n_batch, n_ubatch
    params.n_threads = params.n_threads_batch = n_threads
    params.n_seq_max = n_seqs + 1  # the last one is scratch, for states on their way in and out
    params.n_outputs_max = n_seqs + 1  # as llama.cpp asserts; without it, it makes room for logits of every token
    params.kv_unified = True  # all sequences share the cells, so a copy is metadata only
    params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_ENABLED  # V is stored by rows, not transposed
    params.swa_full = True
    params.no_perf = True
    return params


def _context(model: LlamaModel, params: Any) -> Any:
    if C.llama_model_has_encoder(model.handle) or not C.llama_model_has_decoder(model.handle):
        raise ModelUnreadable(f"{model.path} is not a model that generates text (it has an encoder)")
    with hear_errors() as errors:
        context = C.llama_init_from_model(model.handle, params)
    if not context:
        raise MachineError(
            f"llama.cpp cannot set up {params.n_ctx} cells: {'; '.join(errors) or 'it gives no reason'}",
            hint="Give the daemon fewer cells or free memory.",
        )
    return context


def _geometry(promised: Geometry, layout: StateLayout) -> Geometry:
    """The geometry that the blob shows. Raises Unchunkable where it contradicts the metadata."""
    k_dim, v_dim = layout.k_row // 2, layout.v_row // 2
    if (k_dim, v_dim) != (promised.k_dim, promised.v_dim):
        raise Unchunkable(f"rows of {k_dim}/{v_dim} values, the metadata says {promised.k_dim}/{promised.v_dim}")
    return Geometry(layout.n_layer, k_dim, v_dim, promised.head_dim_k, promised.head_dim_v)


def _failure(status: int) -> Exception:
    """The exception for a return code of llama_decode (llama.h)."""
    if status == 1:
        return CellsFull("no free cells for this step")
    if status == 2:
        return Aborted("the step was aborted")
    return EngineFailed(f"llama_decode failed with code {status}")

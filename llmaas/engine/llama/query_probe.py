"""Queries of some tokens, copied out of llama.cpp's graph as they are computed.

Law: which tokens is a function of their positions alone, so two runs of one context give the same. A step that holds
none of them costs what it costs without a probe; where the C part was not built, or a model's queries are not as
expected, there are none, and nothing else changes.

How much an error in a key or value matters is for the queries to say that will meet it, and the best guess at those
are the ones of late. One token in twelve is enough to rank chunks and channels.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmaas.engine.base import BatchItem
from llmaas.engine.llama.lib import C, ggml_function
from llmaas.native import load_library
from llmaas.records import F16, F32, Geometry, Queries, Rope

_log = logging.getLogger(__name__)
_VERSION = 1
"""Of ``Probe`` in ``_probe.c``; a library left over from another version is not used."""
_EVERY = 12
"""Of so many positions one is sampled: a step that is sampled takes up to 4 % longer (SmolLM2, 2 threads)."""
MOST = 96
"""Queries kept of a sequence."""
_ENOUGH = 64
"""Queries seen before their mean says anything."""
_LEAST_WEIGHT = 1e-6


def sampled(start: int, stop: int) -> Iterator[int]:
    """The sampled positions in start .. stop-1, ascending: one of every twelve, by a multiplicative hash of the twelve
    (Knuth, TAOCP 3, 6.4). Position 0 is not among them: its queries are like no other's.
    """
    for block in range(start // _EVERY, -(-stop // _EVERY)):
        position = _EVERY * block + (((block + 1) * 0x9E3779B1 & 0xFFFFFFFF) * _EVERY >> 32)
        if start <= position < stop:
            yield position


class _Probe(ctypes.Structure):
    """``Probe`` of _probe.c."""

    _fields_ = (
        ("on", ctypes.c_int32),
        ("layers", ctypes.c_int32),
        ("row", ctypes.c_int64),
        ("wanted", ctypes.c_int64),
        ("tokens", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("passed", ctypes.c_void_p),
        ("name", ctypes.c_void_p),
        ("operation", ctypes.c_void_p),
        ("bytes", ctypes.c_void_p),
        ("get", ctypes.c_void_p),
    )


class QueryProbe:
    """Samples the queries of one engine's steps and keeps them by sequence.

    A query takes n_layer x n_head x head_dim_k x 2 bytes (34 KB in SmolLM2-135M, 86 KB in Qwen2.5-1.5B); at most
    ``MOST`` of them are kept of a sequence until they are taken, which only sequences with a running call come near to.
    While a step runs, its queries are held in float32 beside them: one in twelve of a batch's tokens.
    """

    def __init__(self, geometry: Geometry, n_head: int, *, n_batch: int, n_seqs: int) -> None:
        self._shape = geometry.n_layer, n_head, geometry.head_dim_k
        self._kv_heads = geometry.k_dim // geometry.head_dim_k
        most = min(n_batch, n_batch // _EVERY + 2 * n_seqs)
        self._out: F32 = np.empty((most, *self._shape), np.float32)  # the system gives memory to what is written only
        self._tokens = np.zeros(most, np.int32)
        self._passed = np.zeros(geometry.n_layer, np.int64)
        self._found: list[tuple[int, int]] = []  # sequence and position, in the order of _tokens
        self._kept: dict[int, list[tuple[int, F16]]] = {}
        self._squares = np.zeros(self._shape, np.float64)
        self._seen = self._n_tokens = 0
        self._callback = _load()
        self._probe = _Probe(
            layers=geometry.n_layer,
            row=n_head * geometry.head_dim_k,
            tokens=self._tokens.ctypes.data,
            out=self._out.ctypes.data,
            passed=self._passed.ctypes.data,
        )
        self._able = self._callback is not None and self._find_ggml() and n_head % self._kv_heads == 0
        self._sampling = False

    def install(self, params: Any) -> None:
        """Put the callback into a ``llama_context_params``. The probe must live as long as the context."""
        if self._able:
            params.cb_eval = C.ggml_backend_sched_eval_callback(self._callback)
            params.cb_eval_user_data = ctypes.addressof(self._probe)

    def start(self) -> None:
        """Sample from the next step on, if possible at all."""
        self._sampling = self._able

    # -- around a step

    def steps_to_sample(self, items: Sequence[BatchItem], most: int) -> int:
        """How many of at most ``most`` decode steps in a row, one token per item each, may run before something must be
        sampled: the last of them is the first that holds a sampled position.
        """
        if not self._sampling:
            return most
        return min(most, 1 + min(next(sampled(item.pos, item.pos + 2 * _EVERY)) - item.pos for item in items))

    def prepare(self, items: Sequence[BatchItem], steps: int) -> int | None:
        """Be ready for the last of so many decode steps in a row: where to set 1 before it. None: nothing to sample."""
        self.watch([BatchItem(item.seq, item.pos + steps - 1, item.tokens) for item in items])
        if not self._probe.on:
            return None
        self._probe.on = 0
        return ctypes.addressof(self._probe)  # ``on`` is its first field

    def watch(self, items: Sequence[BatchItem]) -> None:
        """The next decode will hold ``items``, in this order."""
        self._probe.on = 0
        if not self._sampling:
            return
        self._found = []
        begin = 0
        for item in items:
            n = len(item.tokens)
            for position in sampled(item.pos, item.pos + n):
                self._tokens[len(self._found)] = begin + position - item.pos
                self._found.append((item.seq, position))
            begin += n
        if self._found:
            self._n_tokens = begin
            self._passed[:] = 0
            self._probe.wanted = len(self._found)
            self._probe.on = 1

    def collect(self) -> None:
        """The decode succeeded: keep what it left. Not called after one that failed."""
        if not self._probe.on:
            return
        self._probe.on = 0
        if not (self._passed == self._n_tokens).all():
            _log.info("the queries of this model are not where they are in others: none are sampled")
            self._sampling = False
            return
        values = self._out[: len(self._found)]
        self._squares += np.square(values).sum(axis=0)
        self._seen += len(values)
        for (seq, position), value in zip(self._found, values.astype(np.float16), strict=True):
            kept = self._kept.setdefault(seq, [])
            kept.append((position, value.copy()))  # alone, so that what is thinned out is freed
            if len(kept) > MOST:
                del kept[-2::-2]

    # -- what came of it

    def drop(self, seq: int, start: int) -> None:
        """Forget the sequence's queries at positions from ``start`` on."""
        kept = self._kept.get(seq)
        while kept and kept[-1][0] >= start:
            kept.pop()

    def take(self, seq: int) -> Queries | None:
        """The sequence's queries, which are then forgotten."""
        kept = self._kept.pop(seq, None)
        if not kept:
            return None
        return Queries(np.array([position for position, _ in kept], np.int32), np.stack([value for _, value in kept]))

    def key_weights(self, rope: Rope | None) -> F32 | None:
        """Root mean square (n_layer, k_dim) of all queries seen, in the channels of the keys that they meet.

        Over the heads that share a key, and over both channels of a rotary pair, which RoPE mixes. Positive.
        None until there are enough.
        """
        if self._seen < _ENOUGH:
            return None
        layers, heads, dim = self._shape
        squares = (
            (self._squares / self._seen).reshape(layers, self._kv_heads, heads // self._kv_heads, dim).mean(axis=2)
        )
        if rope is not None:
            first, second = _halves_of_pairs(squares, rope)
            first[:] = second[:] = (first + second) / 2
        weights = np.maximum(np.sqrt(squares), _LEAST_WEIGHT).astype(np.float32)
        return np.asarray(weights.reshape(layers, -1))

    def _find_ggml(self) -> bool:
        names = {"name": "ggml_get_name", "operation": "ggml_op_desc", "bytes": "ggml_nbytes"}
        for field, function in {**names, "get": "ggml_backend_tensor_get"}.items():
            address = ggml_function(function)
            if address is None:
                return False
            setattr(self._probe, field, address)
        return True


def _halves_of_pairs(
    channels: npt.NDArray[np.float64], rope: Rope
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Views of the first and of the second channels of each head's rotary pairs."""
    n = rope.angles.shape[1]
    if rope.halves:
        return channels[..., :n], channels[..., n : 2 * n]
    return channels[..., 0 : 2 * n : 2], channels[..., 1 : 2 * n : 2]


def _load() -> int | None:
    """The address of the C callback; None if it was not built."""
    library = load_library(__file__, "_probe", lambda library: bool(library.probe_version() == _VERSION))
    if library is None:
        return None
    library.probe_callback.restype = ctypes.c_ssize_t
    address: int = library.probe_callback()
    return address

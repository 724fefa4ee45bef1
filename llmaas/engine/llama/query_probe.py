"""Copies queries out of llama.cpp's graph while a step computes them.

Law: a step that holds no sampled token costs what it costs without a probe. Where the C part was not built, or a
model's queries are not as expected, nothing is sampled, and nothing else changes.
"""

from __future__ import annotations

import ctypes
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmaas.engine.base import BatchItem
from llmaas.engine.llama.lib import C, ggml_function
from llmaas.engine.llama.sampled_queries import EVERY, SampledQueries, as_halves, sampled
from llmaas.kv_arrays import F16, F32
from llmaas.native import load_library
from llmaas.records import Geometry

_log = logging.getLogger(__name__)
_VERSION = 1
"""Of ``Probe`` in ``_probe.c``; a library left over from another version is not used."""


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


_GGML = {"name": "ggml_get_name", "operation": "ggml_op_desc", "bytes": "ggml_nbytes", "get": "ggml_backend_tensor_get"}
"""Functions of ggml that the C part calls, by the fields of ``Probe``."""


class SampledSteps(NamedTuple):
    """Which decode steps in a row are sampled."""

    flag: int
    """The address of a 32-bit integer that must be what ``steps`` says before each step."""
    steps: npt.NDArray[np.uint8]
    """For each step 1 if it is sampled, else 0."""


class QueryProbe:
    """The probe of one engine. ``queries``: what it has sampled.

    While a step runs, its queries are held in float32: of a batch's tokens, one in twelve.
    """

    def __init__(self, geometry: Geometry, n_head: int, *, n_batch: int, n_seqs: int) -> None:
        kv_heads = geometry.k_dim // geometry.head_dim_k
        shape = geometry.n_layer, n_head, geometry.head_dim_k
        self.queries = SampledQueries(shape, kv_heads, ggml_halves() or as_halves)
        most = min(n_batch, n_batch // EVERY + 2 * n_seqs)
        self._out: F32 = np.empty((most, *shape), np.float32)  # the system gives memory to what is written only
        self._tokens = np.zeros(most, np.int32)
        self._passed = np.zeros(geometry.n_layer, np.int64)
        self._found: list[tuple[int, int]] = []
        """Sequence and position of each token to sample in the next step, in the order of _tokens."""
        self._found_in: list[int] = []
        """Of steps in a row: in which of them each is, in the same order."""
        self._n_tokens = 0
        self._probe = _Probe(
            layers=geometry.n_layer,
            row=n_head * geometry.head_dim_k,
            tokens=self._tokens.ctypes.data,
            out=self._out.ctypes.data,
            passed=self._passed.ctypes.data,
        )
        self._callback = load_callback()
        self._able = self._callback is not None and self._find_ggml() and n_head % kv_heads == 0
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

    def watch(self, items: Sequence[BatchItem]) -> None:
        """Be ready for the next decode, which will hold ``items`` in this order."""
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
        """The decode succeeded: keep the queries that it left. Not called after one that failed."""
        if self._probe.on:
            self._keep(len(self._found), self._n_tokens, self._n_tokens)

    def _keep(self, n_found: int, least: int, most: int) -> None:
        """Keep the first queries that were found, if so many tokens have gone by in each layer."""
        self._probe.on = 0
        if self._passed.min() < least or self._passed.max() > most:
            _log.info("the queries of this model are not where they are in others: none are sampled")
            self._sampling = False
            return
        self.queries.add(self._found[:n_found], self._out[:n_found])

    # -- around decode steps in a row

    def prepare(self, items: Sequence[BatchItem], most: int) -> tuple[int, SampledSteps | None]:
        """Be ready for at most ``most`` decode steps in a row, whose first holds ``items``, one token each.

        To the C part the steps that are sampled are ubatches of one batch. Returns how many steps there may be, so that
        there is room for their queries, and which of them are sampled: None if nothing is.
        """
        self._probe.on = 0
        if not self._sampling:
            return most, None
        found = sorted(
            (position - item.pos, i) for i, item in enumerate(items) for position in sampled(item.pos, item.pos + most)
        )
        if len(found) > len(self._tokens):
            most = max(1, found[len(self._tokens)][0])
            found = [(step, i) for step, i in found if step < most]
        if not found:
            return most, None
        steps = sorted({step for step, _ in found})
        self._found = [(items[i].seq, items[i].pos + step) for step, i in found]
        self._found_in = [step for step, _ in found]
        self._tokens[: len(found)] = [steps.index(step) * len(items) + i for step, i in found]
        self._passed[:] = 0
        self._probe.wanted = len(found)
        flags = np.zeros(most, np.uint8)
        flags[steps] = 1
        return most, SampledSteps(ctypes.addressof(self._probe), flags)  # ``on`` is its first field

    def collect_steps(self, items: Sequence[BatchItem], probe: SampledSteps | None, done: int, *, failed: bool) -> None:
        """So many steps in a row were done, and if ``failed``, one more was begun: keep the queries that they left."""
        if probe is not None:
            passed = len(items) * int(np.count_nonzero(probe.steps[:done]))
            self._keep(bisect_left(self._found_in, done), passed, passed + len(items) * failed)

    def _find_ggml(self) -> bool:
        """Give the C part the functions of ggml; False if one is not exported."""
        for field, function in _GGML.items():
            address = ggml_function(function)
            if address is None:
                return False
            setattr(self._probe, field, address)
        return True


def ggml_halves() -> Callable[[F32], F16] | None:
    """ggml's conversion to f16, which takes a twentieth of numpy's time; None if it is not exported."""
    address = ggml_function("ggml_cpu_fp32_to_fp16")
    if address is None:
        return None
    convert = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)

    def halves(values: F32) -> F16:
        flat = np.ascontiguousarray(values)
        found = np.empty(flat.shape, np.float16)
        convert(flat.ctypes.data, found.ctypes.data, flat.size)
        return found

    return halves


def load_callback() -> int | None:
    """The address of the C callback; None if it was not built."""
    library = load_library(__file__, "_probe", lambda library: bool(library.probe_version() == _VERSION))
    if library is None:
        return None
    library.probe_callback.restype = ctypes.c_ssize_t
    address: int = library.probe_callback()
    return address

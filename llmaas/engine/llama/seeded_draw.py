"""The last link of a sampler chain: it draws a token by its chance, with random numbers that can be made again.

Law: which token is drawn depends on the seed, on how many tokens of the answer came before, and on the candidates. So
an answer that is interrupted goes on anywhere as it would have, given its seed and its tokens; that of llama.cpp has a
generator whose state cannot be read.
"""

from __future__ import annotations

import ctypes
import logging
import secrets
from typing import Any

import numpy as np

from llmaas.engine.llama.lib import C
from llmaas.mixing import mix
from llmaas.native import load_library

_log = logging.getLogger(__name__)
_VERSION = 1
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""``llama_token_data``."""


class _Dist(ctypes.Structure):
    """``Dist`` of _dist.c."""

    _fields_ = (("seed", ctypes.c_uint64), ("accepted", ctypes.c_uint32), ("tries", ctypes.c_uint32))


class SeededDraw:
    """One link, for one chain, which frees ``link``; it may be freed before this is gone, and not used after.

    ``in_c``: False: without the C part, which draws the same but for the last bit of a chance.
    """

    def __init__(self, seed: int | None, *, in_c: bool = True) -> None:
        self._dist = _Dist(secrets.randbits(32) if seed is None else seed)
        table = _TABLE if in_c and _TABLE is not None else _SLOW_TABLE
        self.link = C.llama_sampler_init(ctypes.byref(table), ctypes.addressof(self._dist))


def _fits(library: ctypes.CDLL) -> bool:
    shared = ctypes.sizeof(_Dist) + ctypes.sizeof(C.llama_token_data) + ctypes.sizeof(C.llama_token_data_array)
    return bool(library.dist_version() == _VERSION and library.dist_size() == shared)


def _table_of(library: ctypes.CDLL | None) -> Any:
    """The ``llama_sampler_i`` of the C part; None without it."""
    if library is None:
        _log.info("the C part of draws was not built: answers with a temperature are some percent slower")
        return None
    apply, accept = (ctypes.cast(f, ctypes.c_void_p).value for f in (library.dist_apply, library.dist_accept))
    return C.llama_sampler_i(apply=C.llama_sampler_i_apply(apply), accept=C.llama_sampler_i_accept(accept))


def _apply(sampler: Any, array: Any) -> None:
    """``dist_apply`` of _dist.c."""
    dist, candidates = _Dist.from_address(sampler.contents.ctx), array.contents
    candidates.selected = -1
    if not candidates.size:
        return
    address = ctypes.cast(candidates.data, ctypes.c_void_p).value
    memory = (ctypes.c_char * (CANDIDATE.itemsize * candidates.size)).from_address(address or 0)
    rows = np.frombuffer(memory, CANDIDATE)
    weights = np.exp(rows["logit"].astype(np.float64) - float(rows["logit"].max()))
    ends = weights.cumsum()
    rows["p"] = weights / ends[-1]
    wanted = (mix(mix(dist.seed, dist.accepted), dist.tries) >> 11) * 2.0**-53 * ends[-1]
    dist.tries += 1
    candidates.selected = int(np.flatnonzero((ends - weights <= wanted) & (weights > 0))[-1])


def _accept(sampler: Any, token: int) -> None:
    dist = _Dist.from_address(sampler.contents.ctx)
    dist.accepted, dist.tries = dist.accepted + 1, 0


_TABLE = _table_of(load_library(__file__, "_dist", _fits))
_SLOW_TABLE = C.llama_sampler_i(apply=C.llama_sampler_i_apply(_apply), accept=C.llama_sampler_i_accept(_accept))

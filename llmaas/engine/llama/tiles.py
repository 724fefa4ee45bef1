"""Products with Q4_1 weights, and attention, of several tokens at once (``_tiles.c``), on x86.

llama.cpp multiplies each row of Q4_1 weights with each token by itself, and below 64 tokens attends token by token.

Law: a product has the same bits as llama.cpp's. Whether that is so on this CPU is tried before it is used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llmaas.native import load_library

LEVELS = ("llama.cpp", "products by AVX2", "products by AVX-512", "attention by AVX-512, too")
"""What ``use`` chooses from: all by llama.cpp, or more and more of it here."""
Blocks = npt.NDArray[np.uint8]
_F32, _Q4_1, _Q8_1 = 0, 3, 9
"""ggml.h"""
_BLOCK, _WEIGHTS_BYTES, _INPUTS_BYTES = 32, 20, 36
"""Values of a block; its bytes as Q4_1 and as Q8_1 (ggml-common.h)."""

_OWN = (
    "llamafile_sgemm",
    "ggml_compute_forward_flash_attn_ext",
    "ggml_threadpool_chunk_add",
    "ggml_threadpool_chunk_set",
    "ggml_barrier",
)
"""Functions of llama.cpp that ``_tiles.c`` calls, in its order."""

_best = 0
"""The highest level that was not found wrong."""

# Before llama.cpp, whose calls of one of its functions go through it.
library = load_library(__file__, "_tiles", lambda lib: bool(lib.tiles_version() == 1), for_all=True)
"""None if it was not built."""


class Thread(ctypes.Structure):
    """``ggml_compute_params``: thread ``ith`` of ``nth``."""

    _fields_ = (
        ("ith", ctypes.c_int),
        ("nth", ctypes.c_int),
        ("wsize", ctypes.c_size_t),
        ("wdata", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
    )


def begin(find: Callable[[str], int | None]) -> None:
    """Use the highest level that this CPU has and that gives llama.cpp's bits. llama.cpp must not compute before.

    ``find`` gives the address of one of llama.cpp's functions.
    """
    global _best
    if library is None:
        return
    library.tiles_functions.argtypes = [ctypes.c_void_p] * len(_OWN)
    library.tiles_functions.restype = None
    library.tiles_functions(*map(find, _OWN))
    _best = use(0)
    dot, make_tables = find("ggml_vec_dot_q4_1_q8_1"), find("ggml_cpu_init")
    if dot is None or make_tables is None:
        return
    ctypes.CFUNCTYPE(None)(make_tables)()  # without them every scale is 0
    _best = len(LEVELS) - 1
    while (level := use(_best)) and not _agrees(dot):
        _best = level - 1


def use(level: int) -> int:
    """Compute by this one of ``LEVELS``, or the highest below it that there is: which. No step may run meanwhile."""
    return 0 if library is None else int(library.tiles_use(min(level, _best)))


def product(weights: Blocks, inputs: Blocks, *, threads: int = 1) -> npt.NDArray[np.float32] | None:
    """``inputs @ weights.T``, f32[n, m], of Q4_1 blocks u8[m, k, 20] and Q8_1 blocks u8[n, k, 36], by what is in use.

    Each of ``threads`` does its part, one after the other. None if it is left to llama.cpp.
    """
    assert library is not None
    (m, k, _), n = weights.shape, len(inputs)
    result = np.full((n, m), np.nan, np.float32)
    long, pointer, kind = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
    multiply = library.llamafile_sgemm
    multiply.argtypes = [pointer] + [long] * 3 + [pointer, long] * 3 + [kind] * 3
    multiply.restype = ctypes.c_bool
    sizes = (m, n, k, weights.ctypes.data, k, inputs.ctypes.data, k, result.ctypes.data, m)
    done = [multiply(ctypes.byref(Thread(ith, threads)), *sizes, _Q4_1, _Q8_1, _F32) for ith in range(threads)]
    return result if all(done) else None


def dots(dot: int, weights: Blocks, inputs: Blocks) -> npt.NDArray[np.float32]:
    """The same as ``product``, row by row and token by token, by the function at ``dot``."""
    (m, k, _), n = weights.shape, len(inputs)
    result = np.empty((n, m), np.float32)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    types = (ctypes.c_int, pointer, size, pointer, size, pointer, size, ctypes.c_int)
    function = ctypes.CFUNCTYPE(None, *types)(dot)
    for token in range(n):
        for row in range(m):
            to, a, b = result[token, row:].ctypes.data, weights[row].ctypes.data, inputs[token].ctypes.data
            function(_BLOCK * k, to, 0, a, 0, b, 0, 1)
    return result


def blocks_like(n: int, k: int, size: int, rng: np.random.Generator) -> Blocks:
    """``n`` rows of ``k`` blocks of ``size`` bytes: any values, and two scales of up to 2 before them."""
    blocks = rng.integers(0, 256, (n, k, size), np.uint8)
    blocks[:, :, :4] = rng.uniform(-2, 2, (n, k, 2)).astype(np.float16).view(np.uint8)
    return blocks


def _agrees(dot: int) -> bool:
    rng = np.random.default_rng(0)
    weights, inputs = blocks_like(5, 9, _WEIGHTS_BYTES, rng), blocks_like(11, 9, _INPUTS_BYTES, rng)
    mine = product(weights, inputs)
    return mine is not None and mine.tobytes() == dots(dot, weights, inputs).tobytes()

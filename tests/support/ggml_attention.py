"""One attention of llama.cpp's, on arrays: a graph of ggml with that single node."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llmaas.engine.llama.lib import ggml_function

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
_POINTER, _SIZE, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


class _Memory(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", _POINTER), ("no_alloc", ctypes.c_bool))


def _ggml(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    address = ggml_function(name)
    assert address is not None, name
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def attention(q: F32, k: F16, v: F16, mask: F16, *, threads: int) -> F32:
    """f32[n, heads, dv] of q[heads, n, dk], k[kv heads, cells, dk], v[kv heads, cells, dv], mask[n, cells]."""
    new = _ggml("ggml_new_tensor_4d", _POINTER, _POINTER, _INT, *[_SIZE] * 4)
    data = _ggml("ggml_get_data", _POINTER, _POINTER)
    memory = _ggml("ggml_init", _POINTER, _Memory)(_Memory(64 << 20, None, False))

    def tensor(array: npt.NDArray[Any]) -> int:
        sizes = (*reversed(array.shape), 1, 1)[:4]
        made: int = new(memory, 1 if array.dtype == np.float16 else 0, *sizes)
        ctypes.memmove(data(made), array.tobytes(), array.nbytes)
        return made

    node = _ggml("ggml_flash_attn_ext", _POINTER, *[_POINTER] * 5, *[_FLOAT] * 3)
    result = node(memory, *map(tensor, (q, k, v, mask)), q.shape[2] ** -0.5, 0.0, 0.0)
    graph = _ggml("ggml_new_graph", _POINTER, _POINTER)(memory)
    _ggml("ggml_build_forward_expand", None, _POINTER, _POINTER)(graph, result)
    assert _ggml("ggml_graph_compute_with_ctx", _INT, _POINTER, _POINTER, _INT)(memory, graph, threads) == 0
    shape = (q.shape[1], q.shape[0], v.shape[2])
    values = (ctypes.c_float * int(np.prod(shape))).from_address(data(result))
    copied = np.frombuffer(values, np.float32).reshape(shape).copy()
    _ggml("ggml_free", None, _POINTER)(memory)
    return copied


def exact_attention(q: F32, k: F16, v: F16, mask: F16) -> npt.NDArray[np.float64]:
    """The same in f64."""
    group = len(q) // len(k)
    keys, values = (np.repeat(x.astype(np.float64), group, axis=0) for x in (k, v))
    scores = np.einsum("hnd,hcd->hnc", q.astype(np.float64), keys) * q.shape[2] ** -0.5 + mask.astype(np.float64)
    chances = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hnc,hcd->nhd", chances / chances.sum(-1, keepdims=True), values)

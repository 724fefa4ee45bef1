"""LoRA adapters over llama.cpp: loaded from GGUF files, one or none in use.

Law: a file over which llama.cpp would end the process is refused before llama.cpp sees it. llama.cpp checks by
assertion what it expects its callers to know: the types of metadata (reading a number as text aborts), and shapes and
types of tensors, some of which only a step would use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmaas.engine.llama.lib import C, collect_errors
from llmaas.errors import AdapterMismatch, AdapterUnreadable, EngineFailed

_F32, _TEXT = 6, 8
_META = {
    "general.type": _TEXT,
    "general.architecture": _TEXT,
    "adapter.type": _TEXT,
    "adapter.lora.alpha": _F32,
}
"""Metadata that llama.cpp reads, and its types (gguf.h)."""
_NO_ADAPTER = ("file bounds", "general.type", "adapter.type")
"""Parts of llama.cpp's messages about files that are wrong for every model."""
_ACTIVATED = "adapter.alora.invocation_tokens"
"""Metadata of an activated LoRA, which applies only from certain tokens on."""
_TENSOR_TYPES = {0, 1, 8, 30}
"""f32, f16, q8_0, bf16 (ggml.h): the types that convert_lora_to_gguf.py writes."""
_EXPERTS = b"_exps"
"""Part of the names of experts' weights. They have three dimensions, all others at most two."""


class LlamaAdapters:
    """The adapters of one ``llama_model *``, used in one ``llama_context *``.

    Those that are still loaded are freed with the model.
    """

    def __init__(self, model: Any, context: Any) -> None:
        self._model, self._context = model, context
        self._loaded: dict[str, Any] = {}
        self._used = ""

    def load(self, name: str, path: Path) -> None:
        """See ``Engine.load_adapter``. llama.cpp copies the weights, so the file may go afterwards."""
        if not name or name in self._loaded:
            raise ValueError(f"there is an adapter {name!r} already")
        _examine(path)
        with collect_errors() as errors:
            adapter = C.llama_adapter_lora_init(self._model, bytes(path))
        if not adapter:
            reason = errors[0].rpartition("lora adapter: ")[2] if errors else "llama.cpp gives no reason"
            if any(sign in reason for sign in _NO_ADAPTER):
                raise AdapterUnreadable(f"{path} is torn, or no adapter: {reason}")
            raise AdapterMismatch(f"{path} does not fit the model: {reason}")
        self._loaded[name] = adapter

    def unload(self, name: str) -> None:
        """See ``Engine.unload_adapter``."""
        if name not in self._loaded:
            raise ValueError(f"there is no adapter {name!r}")
        if name == self._used:
            self.use("")
        C.llama_adapter_lora_free(self._loaded.pop(name))

    def use(self, name: str) -> None:
        """Compute with this adapter from now on. After a change the next step rebuilds its graph (docs/engine.md)."""
        if name == self._used:
            return
        if name and name not in self._loaded:
            raise ValueError(f"there is no adapter {name!r}")
        n = 1 if name else 0
        handles = (C.llama_adapter_lora_p_ctypes * n)(*([self._loaded[name]] if name else []))
        if status := int(C.llama_set_adapters_lora(self._context, handles, n, (ctypes.c_float * n)(*[1.0] * n))):
            raise EngineFailed(f"llama_set_adapters_lora failed with code {status}")
        self._used = name


# -- looking at a file before llama.cpp loads it, through ggml's own reader


class _Params(ctypes.Structure):
    """``gguf_init_params`` (gguf.h)."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


def _function(name: str, result: Any, *arguments: Any) -> Any:
    found = getattr(C._lib, name)
    found.restype, found.argtypes = result, arguments
    return found


_pointer, _text, _long, _int = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int
_gguf_init = _function("gguf_init_from_file", _pointer, _text, _Params)
_gguf_free = _function("gguf_free", None, _pointer)
_gguf_find_key = _function("gguf_find_key", _long, _pointer, _text)
_gguf_kv_type = _function("gguf_get_kv_type", _int, _pointer, _long)
_gguf_n_tensors = _function("gguf_get_n_tensors", _long, _pointer)
_gguf_tensor_name = _function("gguf_get_tensor_name", _text, _pointer, _long)
_gguf_tensor_type = _function("gguf_get_tensor_type", _int, _pointer, _long)
_ggml_get_tensor = _function("ggml_get_tensor", _pointer, _pointer, _text)
_ggml_n_dims = _function("ggml_n_dims", _int, _pointer)
_ggml_free = _function("ggml_free", None, _pointer)


def _examine(path: Path) -> None:
    """Raise AdapterUnreadable or AdapterMismatch for a file that must not reach llama.cpp."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise AdapterUnreadable(f"cannot read the adapter {path}: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise AdapterUnreadable(f"{path} is not a GGUF file: it begins with {magic!r}")
    with _open_head(path) as (head, tensors):
        for key, kind in _META.items():
            at = _gguf_find_key(head, key.encode())
            if at >= 0 and _gguf_kv_type(head, at) != kind:
                raise AdapterUnreadable(f"{path}: the metadata {key} is of a wrong type")
        if _gguf_find_key(head, _ACTIVATED.encode()) >= 0:
            raise AdapterMismatch(f"{path} is an activated LoRA, which works from certain tokens on only")
        n = int(_gguf_n_tensors(head))
        if not n:
            raise AdapterUnreadable(f"{path} holds no weights")
        for i in range(n):
            name = _gguf_tensor_name(head, i)
            n_dims = int(_ggml_n_dims(_ggml_get_tensor(tensors, name)))
            if _gguf_tensor_type(head, i) not in _TENSOR_TYPES or n_dims > (3 if _EXPERTS in name else 2):
                raise AdapterMismatch(f"{path}: {name.decode('utf-8', 'replace')} is of a type or shape of no adapter")


@contextmanager
def _open_head(path: Path) -> Iterator[tuple[Any, Any]]:
    """A ``gguf_context *`` of the file's metadata, and a ``ggml_context *`` with its tensors' shapes, without data."""
    tensors = ctypes.c_void_p()
    with collect_errors() as errors:
        head = _gguf_init(bytes(path), _Params(True, ctypes.pointer(tensors)))
    if not head:
        raise AdapterUnreadable(f"{path} is torn, or not sound GGUF: {errors[0] if errors else 'no reason given'}")
    try:
        yield head, tensors
    finally:
        _gguf_free(head)
        _ggml_free(tensors)

"""What computes beside the CPU: the devices that llama.cpp was built for and found on this machine.

Law: it reads what ggml tells, and chooses nothing. The CPU is always there, and computes what no device does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from llmaas.engine.llama.lib import ggml_function
from llmaas.errors import ConfigError
from llmaas.frozen import frozen

_CPU, _GPU, _INTEGRATED, _ACCELERATOR = range(4)
"""``enum ggml_backend_dev_type``. The last is a part of the CPU (BLAS, AMX), which cannot be chosen."""
_MOST = 64


@frozen
class Placement:
    """Where a model computes. Without arguments: all layers on all devices, divided by llama.cpp."""

    devices: tuple[str, ...] | None = None
    """Names of devices; of none: the CPU alone. None: all that there are."""
    layers: int | None = None
    """How many layers devices compute, the last of the model; the others are the CPU's. None: all."""


EVERYWHERE = Placement()


@frozen
class ComputeDevice:
    """A device by its ggml ``name`` ("CUDA0", "Vulkan0"). Bytes are of its memory."""

    name: str
    description: str
    integrated: bool
    """Whether its memory is the machine's own."""
    free_bytes: int
    total_bytes: int


def compute_devices() -> list[ComputeDevice]:
    """All but the CPU, in llama.cpp's order. None where it was built for none, or no driver is there."""
    return [_device(handle) for handle in _handles()]


def devices_apart() -> list[str]:
    """Names of those that have memory of their own."""
    return [device.name for device in compute_devices() if not device.integrated]


def device_list(names: Sequence[str] | None) -> Any:
    """For ``llama_model_params.devices``: the handles of these devices, and NULL. None: llama.cpp takes all.

    Raises ConfigError for a device that is not there.
    """
    if names is None:
        return None
    by_name = {_text("name", handle): handle for handle in _handles()}
    for name in names:
        if name not in by_name:
            known = ", ".join(by_name) or "none. The engine is built for the CPU alone, or the driver is missing"
            raise ConfigError(
                f"no device here is called {name!r}",
                hint=f"Devices that compute: {known}; docs/gpu.md says how the engine is built for them.",
            )
    return (ctypes.c_void_p * (len(names) + 1))(*(by_name[name] for name in names), None)


def _handles() -> list[int]:
    n = min(_MOST, int(_call("count", ctypes.c_size_t)))
    handles = [_call("get", ctypes.c_void_p, ctypes.c_size_t(i)) for i in range(n)]
    return [handle for handle in handles if _type(handle) in (_GPU, _INTEGRATED)]


def _device(handle: int) -> ComputeDevice:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("memory", None, ctypes.c_void_p(handle), ctypes.byref(free), ctypes.byref(total))
    name, description = _text("name", handle), _text("description", handle)
    return ComputeDevice(name, description, _type(handle) == _INTEGRATED, free.value, total.value)


def _type(handle: int) -> int:
    return int(_call("type", ctypes.c_int, ctypes.c_void_p(handle)))


def _text(what: str, handle: int) -> str:
    text: bytes | None = _call(what, ctypes.c_char_p, ctypes.c_void_p(handle))
    return (text or b"").decode("utf-8", "replace")


def _call(name: str, result: Any, *arguments: Any) -> Any:
    """The result of ``ggml_backend_dev_NAME``, which ggml has exported since devices can be chosen."""
    address = ggml_function(f"ggml_backend_dev_{name}")
    assert address is not None
    return ctypes.CFUNCTYPE(result)(address)(*arguments)

"""The C library of slots, which has the memory barriers and the futex that Python has not.

Law: it is used only if it fits this file. Without it there are no slots, and that is said.
"""

from __future__ import annotations

import ctypes
import functools

from llmaas.errors import MachineError
from llmaas.native import load_library

_ABI = 3
"""As in ``_slots.c``."""


class EndStruct(ctypes.Structure):
    """``slot_end``: one side of a slot."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("size", ctypes.c_uint32),
        ("state", ctypes.c_uint32),
        ("in_ring", ctypes.c_uint32),
        ("in_written", ctypes.c_uint32),
        ("in_taken", ctypes.c_uint32),
        ("out_ring", ctypes.c_uint32),
        ("out_written", ctypes.c_uint32),
        ("out_taken", ctypes.c_uint32),
        ("my_sleep", ctypes.c_uint32),
        ("its_sleep", ctypes.c_uint32),
        ("taken", ctypes.c_uint32),
        ("written", ctypes.c_uint32),
        ("bell", ctypes.c_uint32),
        ("stays", ctypes.c_uint32),
        ("in_vain", ctypes.c_uint32),
        ("skip", ctypes.c_uint32),
        ("robbed", ctypes.c_uint32),
        ("crowded", ctypes.c_uint32),
        ("calm", ctypes.c_uint32),
    )


def slots_library() -> ctypes.CDLL:
    """Raises MachineError if it was not built."""
    library = _load()
    if library is None:
        raise MachineError(
            "slots need a C library of llmaas, which was not built or does not fit",
            hint="Install a C compiler and llmaas again, or use the socket.",
        )
    return library


@functools.cache
def _load() -> ctypes.CDLL | None:
    library = load_library(__file__, "_slots", lambda found: bool(found.slots_abi() == _ABI))
    if library is None:
        return None
    end, number = ctypes.c_void_p, ctypes.c_uint64
    library.slots_map.restype, library.slots_map.argtypes = ctypes.c_void_p, (ctypes.c_int, number)
    library.slots_unmap.restype = library.slots_discard.restype = None
    library.slots_unmap.argtypes = library.slots_discard.argtypes = (ctypes.c_void_p, number)
    # These take less than a few microseconds, and keep the interpreter: another thread that got it would have it for
    # longer.
    count, bits = ctypes.c_int64, ctypes.c_int
    quick = {
        "slots_write": ctypes.PYFUNCTYPE(count, end, ctypes.c_char_p, number),
        "slots_read": ctypes.PYFUNCTYPE(count, end, ctypes.c_void_p, number),
        "slots_ready": ctypes.PYFUNCTYPE(bits, end, bits),
        "slots_sleep": ctypes.PYFUNCTYPE(bits, end, bits),
        "slots_came": ctypes.PYFUNCTYPE(bits, end, bits),
    }
    for name, prototype in quick.items():
        setattr(library, name, prototype((name, library)))
    library.slots_may_look.argtypes, library.slots_looked.argtypes = (end,), (end, ctypes.c_int)
    library.slots_looked.restype = None
    library.slots_spin.argtypes = (end, ctypes.c_int, ctypes.c_int64)
    library.slots_wait.argtypes = (end, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    for nothing in (library.slots_awake, library.slots_finish, library.slots_stayed_in_vain):
        nothing.restype, nothing.argtypes = None, (end,)
    assert library.slots_end_size() == ctypes.sizeof(EndStruct)
    return library

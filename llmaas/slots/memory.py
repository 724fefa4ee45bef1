"""The memory of a slot: made by the service, mapped by both sides.

Law: the client cannot make it smaller, which would end the service at its next access (SIGBUS): its size is sealed.
When the service lets go of a slot, its pages go back to the system, whoever keeps it mapped: not before the client has
had time to read what the service said last.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
import weakref
from pathlib import Path

from llmaas.errors import MachineError, NoMemory
from llmaas.slots.layout import OPEN, STATE, SlotHeader, SlotLayout, header, read_header
from llmaas.slots.library import slots_library

_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1, 2, 4
"""fcntl(2). Python names them only where the C library's headers did; the daemon must start anywhere."""
_MOST_HEADER = 64


class SlotMemory:
    """A slot in this process's memory, until ``close`` or the end of this object."""

    def __init__(self, fd: int, nbytes: int) -> None:
        """``fd`` stays the caller's. Raises NoMemory."""
        library = slots_library()
        base = library.slots_map(fd, nbytes)
        if not base:
            raise NoMemory(f"a slot of {nbytes} bytes cannot be mapped")
        self.base: int = base
        self.nbytes = nbytes
        self._library = library
        self._unmap = weakref.finalize(self, library.slots_unmap, base, nbytes)

    def close(self, *, discard: bool = False) -> None:
        """Nothing may use it any more. Idempotent.

        ``discard``: its pages go back to the system, also if another process keeps it mapped: that then reads zeros.
        """
        if discard and not self.closed:
            self._library.slots_discard(self.base, self.nbytes)
        self._unmap()

    def wipe(self) -> None:
        """It reads as zeros then, also where another process keeps it mapped. For memory of which no page can be given
        back: a device's."""
        self._check(0, self.nbytes)
        ctypes.memset(self.base, 0, self.nbytes)

    @property
    def closed(self) -> bool:
        return not self._unmap.alive

    def load(self, offset: int, nbytes: int) -> bytes:
        self._check(offset, nbytes)
        return ctypes.string_at(self.base + offset, nbytes)

    def store(self, offset: int, data: bytes) -> None:
        self._check(offset, len(data))
        ctypes.memmove(self.base + offset, data, len(data))

    def _check(self, offset: int, nbytes: int) -> None:
        if self.closed or not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} are not in the slot")


def make_slot(layout: SlotLayout, generation: int, owner: int) -> tuple[int, SlotMemory]:
    """A new slot for a client: the descriptor to pass to it, and the service's own mapping. Raises MachineError."""
    slots_library()
    fd = sealed_memory(layout.nbytes)
    try:
        memory = SlotMemory(fd, layout.nbytes)
    except BaseException:
        os.close(fd)
        raise
    memory.store(0, header(layout, generation, owner))
    memory.store(STATE, OPEN.to_bytes(4, sys.byteorder))
    return fd, memory


def sealed_memory(nbytes: int) -> int:
    """The descriptor of memory without a name, whose size nobody can change. Raises MachineError."""
    try:
        fd = os.memfd_create("llmaas-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (OSError, AttributeError) as e:
        raise MachineError(f"this system gives no shared memory: {e}", hint="Use the socket.") from e
    try:
        os.truncate(fd, nbytes)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW)
    except OSError as e:
        os.close(fd)
        raise NoMemory(f"there is no memory for a slot of {nbytes} bytes: {e.strerror}") from e
    return fd


def use_slot(file: Path, generation: int, owner: int) -> tuple[SlotLayout, SlotMemory]:
    """A slot in memory that is there already, such as a device's, and that a client on another kernel has. What stood
    in it is wiped. Raises MachineError."""
    slots_library()
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        raise MachineError(f"the memory {file} cannot be opened: {e.strerror}", hint="Use the socket.") from e
    try:
        layout = SlotLayout.within(os.fstat(fd).st_size)
        memory = SlotMemory(fd, layout.nbytes)
    except ValueError as e:
        raise MachineError(f"the memory {file} is too small for a slot: {e}", hint="Use the socket.") from e
    finally:
        os.close(fd)
    memory.wipe()
    memory.store(0, header(layout, generation, owner, far=True))
    memory.store(STATE, OPEN.to_bytes(4, sys.byteorder))
    return layout, memory


def open_slot(fd: int) -> tuple[SlotHeader, SlotMemory]:
    """The slot that the service has passed; ``fd`` stays the caller's. Raises MachineError, VersionMismatch."""
    try:
        nbytes, seals = os.fstat(fd).st_size, fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError as e:
        raise MachineError(f"what the daemon passed is no slot: {e.strerror}") from e
    if not seals & _SEAL_SHRINK:
        raise MachineError("what the daemon passed is no slot: it may be cut while it is in use")
    memory = SlotMemory(fd, nbytes)
    return read_header(memory.load(0, min(_MOST_HEADER, nbytes)), nbytes), memory

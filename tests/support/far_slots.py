"""A daemon with slots in memory that it was lent, as if it were in a guest, served at a socket of the host.

One process plays host and guest: what is missing is QEMU between the two mappings, and no side may use a futex.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from llmaas.api.peer import peer_uid
from llmaas.api.server import Server
from llmaas.slots.grants import SlotSettings
from llmaas.slots.memory import sealed_memory
from llmaas.vm.slot_memories import lend
from tests.support.scripted import Ask, ScriptedBackend, served_in_a_thread, serving
from tests.support.vm_line import served_through


@contextlib.contextmanager
def lent(count: int, nbytes: int) -> Iterator[tuple[list[int], Path]]:
    """The descriptors that a host has, and the folder that its guest has."""
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as held:
        fds = [sealed_memory(nbytes) for _ in range(count)]
        for fd in fds:
            held.callback(os.close, fd)
        folder = Path(root) / "slots"
        lend([Path(f"/proc/{os.getpid()}/fd/{fd}") for fd in fds], folder, os.getuid())
        yield fds, folder


@contextlib.asynccontextmanager
async def serving_far(
    path: Path, *, count: int = 8, nbytes: int = 1 << 20, uid: int | None = None, **options: Any
) -> AsyncIterator[tuple[ScriptedBackend, Server]]:
    """As ``serving``; the daemon's own socket is ``guest.sock`` beside ``path``."""
    guest = path.with_name("guest.sock")
    with lent(count, nbytes) as (fds, folder):
        async with (
            serving(guest, slots=SlotSettings(folder=folder), **options) as made,
            served_through(
                guest, path, peer_uid if uid is None else lambda sock: uid, until_end=False, slot_memories=fds
            ),
        ):
            yield made


def serving_far_in_a_thread(path: Path, **options: Any) -> contextlib.AbstractContextManager[Ask]:
    """As ``serving_in_a_thread``."""
    return served_in_a_thread(serving_far(path, **options))

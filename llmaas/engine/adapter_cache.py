"""The adapters in the engine's memory: an LRU cache with a budget, whose entries are pinned while they are in use.

Law: on the engine's thread only, except ``examine`` and ``loaded``. An adapter that was acquired stays loaded until it
was released as often; of the others the least recently used is evicted first. An adapter loaded under a fingerprint has
the content of that fingerprint.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

from llmaas.engine.base import Engine
from llmaas.errors import AdapterUnreadable, BadRequest, Busy
from llmaas.frozen import frozen
from llmaas.regular_file import open_regular

_BLOCK = 1 << 20
_NO_STAMP = (0, 0, 0)
"""The stamp of no file: an adapter that has it is read again when it is loaded."""


@frozen
class AdapterFile:
    """A LoRA adapter's file, and what it held when it was read."""

    name: str
    path: Path
    fingerprint: str
    """Hash of the whole file, 32 hex digits. It is part of the keys of KV that was computed with the adapter."""
    size_bytes: int = 0
    """Of the file. It takes about as much in memory, since nearly all of it is weights."""
    stamp: tuple[int, int, int] = _NO_STAMP
    """Inode, bytes and time of change. While they are the same, so is the content."""


def examine(name: str, path: Path, budget: int) -> AdapterFile:
    """Read and hash a whole file. Safe on any thread.

    Raises AdapterUnreadable, and BadRequest if the file has more than ``budget`` bytes, of which none is read then.
    """
    hasher = hashlib.blake2b(digest_size=16)
    try:
        with open_regular(path) as file:
            stamp = _stamp(os.fstat(file.fileno()))
            left = stamp[1]
            if left == 0:  # as files of /proc say, some of which wait for what they tell when they are read
                raise AdapterUnreadable(f"cannot read the adapter {path}: it is empty")
            if left > budget:
                raise BadRequest(
                    f"adapter {name!r} has {left} bytes; all that are loaded may have {budget}",
                    hint="Start the daemon with more adapter_bytes.",
                )
            while left > 0 and (block := file.read(min(left, _BLOCK))):  # no more, though the file may grow meanwhile
                hasher.update(block)
                left -= len(block)
            same = _stamp(os.fstat(file.fileno())) == stamp
    except OSError as error:
        raise AdapterUnreadable(f"cannot read the adapter {path}: {error.strerror or error}") from error
    if not same:
        raise AdapterUnreadable(f"cannot read the adapter {path}: it is being written to")
    return AdapterFile(name, path, hasher.hexdigest(), stamp[1], stamp)


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


class AdapterCache:
    """``budget``: bytes that the loaded adapters may take together. The engine has them under their fingerprints."""

    def __init__(self, engine: Engine, budget: int) -> None:
        self._engine, self.budget = engine, budget
        self._loaded: dict[str, int] = {}
        """Bytes of each loaded adapter, the least recently used first."""
        self._users: Counter[str] = Counter()
        self.loads = 0
        """How often an adapter was loaded, for the metrics."""

    @property
    def loaded(self) -> dict[str, int]:
        """Bytes of each adapter in memory. A copy; safe on any thread."""
        return self._loaded.copy()

    def acquire(self, adapter: AdapterFile) -> None:
        """Load the adapter unless it is loaded, and pin it until ``release``.

        Raises AdapterUnreadable if its file is gone or has changed, AdapterMismatch if it is for another model,
        BadRequest if it is larger than the budget, and Busy if the pinned adapters leave no room for it.
        """
        fingerprint = adapter.fingerprint
        if fingerprint not in self._loaded:
            self._load(adapter)
        self._loaded[fingerprint] = self._loaded.pop(fingerprint)
        self._users[fingerprint] += 1

    def release(self, fingerprint: str) -> None:
        """Undo one ``acquire``. The adapter stays loaded until its room is needed."""
        self._users[fingerprint] -= 1

    def evict_idle(self, fingerprint: str) -> None:
        """Unload an adapter that nobody will acquire again, unless it is in use now."""
        if fingerprint in self._loaded and not self._users[fingerprint]:
            self._unload(fingerprint)

    def _load(self, adapter: AdapterFile) -> None:
        path = adapter.path
        try:
            same = _stamp(path.stat()) == adapter.stamp
        except OSError as error:
            raise AdapterUnreadable(f"cannot read the adapter {path}: {error.strerror or error}") from error
        now = adapter if same else examine(adapter.name, path, self.budget)
        if now.fingerprint != adapter.fingerprint:
            raise AdapterUnreadable(
                f"{path} has changed since it was registered as {adapter.name!r}",
                hint=f"Register it again: 'llmaas adapter add {adapter.name} {path}'.",
            )
        self._make_room(now)
        self._engine.load_adapter(adapter.fingerprint, path)
        self._loaded[adapter.fingerprint] = now.size_bytes
        self.loads += 1

    def _make_room(self, adapter: AdapterFile) -> None:
        excess = sum(self._loaded.values()) + adapter.size_bytes - self.budget
        idle = [fingerprint for fingerprint in self._loaded if not self._users[fingerprint]]
        if excess > sum(self._loaded[fingerprint] for fingerprint in idle):
            raise Busy(
                f"the adapters that are in use leave no room for {adapter.name!r} ({adapter.size_bytes} bytes)",
                hint="Try again when other calls have ended, or give the daemon more adapter_bytes.",
            )
        for fingerprint in idle:
            if excess <= 0:
                return
            excess -= self._loaded[fingerprint]
            self._unload(fingerprint)

    def _unload(self, fingerprint: str) -> None:
        self._engine.unload_adapter(fingerprint)
        del self._loaded[fingerprint]
        del self._users[fingerprint]

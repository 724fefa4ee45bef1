"""Adapters in the engine's memory: loaded when they are needed, within a budget.

Law: on the engine's thread only, but for ``examine`` and ``loaded``. What is taken stays loaded until it is given back
as often; of the rest, what was used last longest ago goes first. What is loaded under a fingerprint has that content.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llmaas.engine.base import Engine
from llmaas.errors import AdapterUnreadable, Busy

_BLOCK = 1 << 20
_MISSING = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A LoRA adapter's file, and what it held when it was looked at."""

    name: str
    path: Path
    fingerprint: str
    """Hash of all of it, 32 hex digits: KV that was computed with it is named by this."""
    size_bytes: int = 0
    """About what it takes in memory, too: nearly all of it is weights."""
    stamp: tuple[int, int, int] = _MISSING
    """Inode, bytes and time of change: while they are the same, so is the content."""


def examine(name: str, path: Path) -> AdapterFile:
    """Read all of a file. Safe on any thread. Raises AdapterUnreadable."""
    hasher = hashlib.blake2b(digest_size=16)
    try:
        stamp = _stamp(path)
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
    except OSError as error:
        raise AdapterUnreadable(f"cannot read the adapter {path}: {error.strerror or error}") from error
    return AdapterFile(name, path, hasher.hexdigest(), stamp[1], stamp)


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class AdapterCache:
    """``budget``: bytes that loaded adapters take at most. The engine knows them by their fingerprints."""

    def __init__(self, engine: Engine, budget: int) -> None:
        self._engine, self.budget = engine, budget
        self._loaded: dict[str, int] = {}
        """Bytes, the one used longest ago first."""
        self._users: Counter[str] = Counter()
        self.loads = 0
        """How often one was loaded."""

    @property
    def loaded(self) -> dict[str, int]:
        """Bytes of each adapter in memory. A copy; safe on any thread."""
        return self._loaded.copy()

    def acquire(self, adapter: AdapterFile) -> None:
        """Load the adapter if need be, and keep it until it is given back.

        Raises AdapterUnreadable (its file is gone, or not what it was), AdapterMismatch, and Busy if those that are
        taken leave no room.
        """
        fingerprint = adapter.fingerprint
        if fingerprint not in self._loaded:
            self._load(adapter)
        self._loaded[fingerprint] = self._loaded.pop(fingerprint)
        self._users[fingerprint] += 1

    def release(self, fingerprint: str) -> None:
        self._users[fingerprint] -= 1

    def evict_idle(self, fingerprint: str) -> None:
        """Nobody will take it again: unload it, if nobody uses it now."""
        if fingerprint in self._loaded and not self._users[fingerprint]:
            self._unload(fingerprint)

    def _load(self, adapter: AdapterFile) -> None:
        path = adapter.path
        try:
            same = _stamp(path) == adapter.stamp
        except OSError as error:
            raise AdapterUnreadable(f"cannot read the adapter {path}: {error.strerror or error}") from error
        now = adapter if same else examine(adapter.name, path)
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

"""Injected faults: system calls, a database and an engine that fail at random, and files that are damaged on disk.

One ``Dice`` draws all of them and counts them by kind, so that a test can say what the service has survived.
"""

from __future__ import annotations

import errno
import math
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmaas.engine.base import BatchItem, Row
from llmaas.engine.fake import FakeEngine
from llmaas.kv_arrays import KvSlab, Queries
from llmaas.kvchunks.store.store import Files

STATEMENTS = ("BEGIN", "SELECT", "INSERT", "UPDATE", "DELETE", "COMMIT", "PRAGMA wal_checkpoint")
SQL_FAULTS = {
    "full": "database or disk is full",
    "io": "disk I/O error",
    "locked": "database is locked",
}


class Dice:
    """Decides when something fails; safe on any thread. ``rate`` is the chance of a call to fail, while ``on``."""

    def __init__(self, seed: int, rate: float) -> None:
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._rate = rate
        self.on = False
        self.injected: Counter[str] = Counter()

    def strikes(self, *kinds: str, often: float = 1.0) -> str | None:
        """The kind of fault that this call gets, which is counted; None: none. ``often`` multiplies the rate."""
        with self._lock:
            if not self.on or self._rng.random() >= self._rate * often:
                return None
            kind = self._rng.choice(kinds)
            self.injected[kind] += 1
            return kind

    def number(self, below: int) -> int:
        """A random number of 0 .. ``below`` - 1."""
        with self._lock:
            return self._rng.randrange(below)

    def fail(self, what: str, *codes: int, path: object = None, often: float = 1.0) -> None:
        """Raise OSError with one of the codes, if this call gets a fault."""
        kind = self.strikes(*(f"{what} {errno.errorcode[code]}" for code in codes), often=often)
        if kind is not None:
            code = getattr(errno, kind.split()[1])
            raise OSError(code, os.strerror(code), path and str(path))


class FaultyFiles(Files):
    """The store's system calls and statements; each may fail, do half of its work, or claim to have done it."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self._payload: set[int] = set()

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if path.suffix == ".kv":
            if flags & os.O_CREAT:
                self.dice.fail("create", errno.ENOSPC, errno.EIO, path=path)
            self.dice.fail("open", errno.EIO, errno.EMFILE, path=path)
        fd = super().open(path, flags, mode)
        if path.suffix == ".kv":
            self._payload.add(fd)
        return fd

    def close(self, fd: int) -> None:
        super().close(fd)
        if fd in self._payload:
            self._payload.discard(fd)
            self.dice.fail("close", errno.EIO, errno.ENOSPC)

    def size(self, fd: int) -> int:
        self.dice.fail("fstat", errno.EIO)
        return super().size(fd)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if fd not in self._payload:
            return super().pwritev(fd, buffers, offset)
        self.dice.fail("write", errno.ENOSPC, errno.EIO)
        if self.dice.strikes("write stops short"):
            return super().pwritev(fd, [buffers[0][: 1 + len(buffers[0]) // 2]], offset)
        if self.dice.strikes("write is torn"):  # zeros are written, and no error is returned
            zeros = [memoryview(bytes(len(buffer))) for buffer in buffers]
            return super().pwritev(fd, zeros, offset)
        return super().pwritev(fd, buffers, offset)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        self.dice.fail("read", errno.EIO)
        kind = self.dice.strikes("read stops short", "read ends early", "read flips a bit")
        if kind == "read ends early":
            return 0
        n = super().pread_into(fd, buffer[: 1 + len(buffer) // 2] if kind == "read stops short" else buffer, offset)
        if kind == "read flips a bit" and n:
            buffer[self.dice.number(n)] ^= 1 << self.dice.number(8)
        return n

    def ftruncate(self, fd: int, size: int) -> None:
        self.dice.fail("truncate", errno.EIO, often=10)
        super().ftruncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        self.dice.fail("sync", errno.EIO, errno.ENOSPC, often=10)
        super().fdatasync(fd)

    def unlink(self, path: Path) -> None:
        self.dice.fail("unlink", errno.EIO, errno.EPERM, path=path, often=10)
        super().unlink(path)

    def list_sizes(self, folder: Path) -> dict[str, int]:
        self.dice.fail("list", errno.EIO, path=folder)
        return super().list_sizes(folder)

    def path_size(self, path: Path) -> int:
        self.dice.fail("stat", errno.EIO, path=path, often=0.5)
        return super().path_size(path)

    def room(self, folder: Path) -> int:
        self.dice.fail("statvfs", errno.EIO, path=folder)
        return 0 if self.dice.strikes("no room") else super().room(folder)

    def connect(self, path: Path) -> sqlite3.Connection:
        self.dice.fail("connect", errno.EMFILE, path=path)
        factory = type("Connection", (FaultyConnection,), {"dice": self.dice})
        return sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False, factory=factory)


class FaultyConnection(sqlite3.Connection):
    dice: Dice

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self._fail(sql)
        return super().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self._fail(sql)
        return super().executemany(sql, *args)

    def _fail(self, sql: str) -> None:
        statement = next((s for s in STATEMENTS if sql.startswith(s)), None)
        if statement is not None:
            kind = self.dice.strikes(*(f"{statement} {name}" for name in SQL_FAULTS))
            if kind is not None:
                raise sqlite3.OperationalError(SQL_FAULTS[kind.rsplit(" ", 1)[1]])


class FaultyEngine(FakeEngine):
    """Steps, loads and exports may fail before they change anything. Queries are sampled, so chunks are measured."""

    dice: Dice

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        self._fail("engine step", 0.2)
        return super().step(items, adapter, draw_s=draw_s)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        self._fail("engine load", 0.5)
        super().load(seq, start, slab)

    def begin_load(self, seq: int, start: int, n_tokens: int) -> list[KvSlab] | None:
        self._fail("engine begins a load", 0.5)
        return super().begin_load(seq, start, n_tokens) if not self.dice.strikes("not in place", often=0.5) else None

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        self._fail("engine export", 1.0)
        return super().export(seq, start, stop)

    def blank(self, n_tokens: int) -> KvSlab:
        if self.dice.strikes("no memory", often=0.3):
            raise MemoryError
        return super().blank(n_tokens)

    def take_queries(self, seq: int) -> Queries | None:
        self._fail("engine queries", 1.0)
        g, n = self.info.geometry, self.length(seq)
        positions = np.arange(5, n, 10, dtype=np.int32)
        shape = (len(positions), g.n_layer, 2 * g.k_dim // g.head_dim_k, g.head_dim_k)
        return Queries(positions, np.random.default_rng(n).standard_normal(shape).astype(np.float16))

    def _fail(self, what: str, often: float) -> None:
        if self.dice.strikes(what, often=often):
            raise RuntimeError(f"{what}: an injected fault")


class JumpyClock:
    """A wall clock that jumps by days now and then, and a monotonic clock that may stand still."""

    def __init__(self, dice: Dice) -> None:
        self._dice, self._off, self._still = dice, 0.0, 0.0

    def now(self) -> float:
        if not self._still and self._dice.strikes("clock stands still", often=0.1):
            self._still = time.monotonic()
        elif self._still and self._dice.strikes("clock goes on"):
            self._still = 0.0
        return self._still or time.monotonic()

    def wall(self) -> float:
        kind = self._dice.strikes("clock jumps back", "clock jumps forward", often=3)
        if kind is not None:
            self._off += 86400 * self._dice.number(1000) * (1 if kind.endswith("forward") else -1)
        return time.time() + self._off


def rot(payload: Path, rng: random.Random, injected: Counter[str]) -> None:
    """Damage one payload file on disk: flip a bit, write zeros, cut it, make it longer, or delete it."""
    files = sorted(path for path in payload.iterdir() if path.suffix == ".kv" and path.stat().st_size)
    if not files:
        return
    path = rng.choice(files)
    size = path.stat().st_size
    kind = rng.choice(["a bit flips", "a bit flips", "a hole of zeros", "is cut short", "is empty", "is gone", "grows"])
    if kind == "is gone":
        path.unlink()
    elif kind in ("is cut short", "is empty"):
        os.truncate(path, 0 if kind == "is empty" else rng.randrange(size))
    else:
        with path.open("r+b") as file:
            at = rng.randrange(size)
            if kind == "a bit flips":
                file.seek(at)
                (byte,) = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ 1 << rng.randrange(8)]))
            elif kind == "a hole of zeros":
                file.seek(at)
                file.write(bytes(min(4096, size - at)))
            else:
                file.seek(size)
                file.write(rng.randbytes(100))
    injected[f"file: {kind}"] += 1

"""The system calls of a store, any one of which can be made to fail."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmaas.kvchunks.store.store import Files


class Trouble:
    """Raises at the ``at``-th site that asks, once; with ``stays`` at every one from then on."""

    def __init__(self, code: int, at: int, *, stays: bool = False) -> None:
        self.code, self.at, self.stays = code, at, stays
        self.sites = 0

    @property
    def fired(self) -> bool:
        return self.sites >= self.at

    def due(self) -> bool:
        self.sites += 1
        return self.sites == self.at or (self.stays and self.fired)

    def site(self, path: object = None) -> None:
        if self.due():
            raise OSError(self.code, os.strerror(self.code), path and str(path))


WRITES = ("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE", "CREATE", "COMMIT", "PRAGMA wal_checkpoint")


class TroubledConnection(sqlite3.Connection):
    trouble: Trouble

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self._write_site(sql)
        return super().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self._write_site(sql)
        return super().executemany(sql, *args)

    def _write_site(self, sql: str) -> None:
        if sql.startswith(WRITES) and self.trouble.due():
            full = self.trouble.code == errno.ENOSPC
            raise sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")


class TroubledFiles(Files):
    """Faults at every call that changes something, and transfers that stop short."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if flags & os.O_CREAT:
            self.trouble.site(path)
        return super().open(path, flags, mode)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.trouble.site()
        return super().pwritev(fd, [buffers[0][: max(1, len(buffers[0]) * 2 // 3)]], offset)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        return super().pread_into(fd, buffer[: 1 + len(buffer) // 2], offset)

    def ftruncate(self, fd: int, size: int) -> None:
        self.trouble.site()
        super().ftruncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        self.trouble.site()
        super().fdatasync(fd)

    def unlink(self, path: Path) -> None:
        self.trouble.site(path)
        super().unlink(path)

    def sync_folder(self, path: Path) -> None:
        self.trouble.site(path)
        super().sync_folder(path)

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = type("Connection", (TroubledConnection,), {"trouble": self.trouble})
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=connection)

"""The index database as the rest of the store sees it: short write transactions, concurrent reads.

Law: one connection writes, under one lock, in transactions that hold no payload I/O; readers borrow
connections of their own from a pool and see the last commit. A commit that succeeded is never
reported as failed.

Rejected: one connection for all, under one lock. A read then waits behind the fsync of a running token commit
(docs/format.md has the figures). Rejected: a connection per thread kept in thread-local storage; those of dead
threads stay open until the store closes.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.schema import prepare_reader, prepare_writer
from llmaas.kvchunks.store.syscalls import Files, failures

log = logging.getLogger(__name__)


class Txn:
    """A write transaction. ``written`` is set when it has been committed."""

    __slots__ = ("con", "written")

    def __init__(self, con: sqlite3.Connection) -> None:
        self.con = con
        self.written = 0
        """Bytes this transaction costs the disk, at most: what it added to the log, counted twice, since a
        checkpoint copies each page of the log into the database once more (or less: pages that were logged
        repeatedly are copied once)."""


class Index:
    """SQLite file ``path``; created, migrated and recovered from its log on opening. Raises DiskFull, StoreFailed."""

    def __init__(self, path: Path, files: Files, *, wal_limit: int) -> None:
        self.path = path
        self._wal = path.with_name(path.name + "-wal")
        self._files = files
        self._wal_limit = wal_limit
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        self._closed = False
        self._durable = True
        self._scrub_due = False
        self.written = 0
        with failures(path):
            self._create_private()
            self._writer = files.connect(path)
            try:
                prepare_writer(self._writer, path)
            except BaseException:
                self._writer.close()
                raise
            self._wal_size = files.path_size(self._wal)
        self._checkpoint_at = wal_limit
        if self._wal_size:  # a killed process left it, and with it perhaps what a deletion should have scrubbed
            self._checkpoint()

    def _create_private(self) -> None:
        """Make the file first, with its mode: SQLite gives its log the mode of the database."""
        if self._files.path_size(self.path):
            return
        self._files.close(self._files.open(self.path, os.O_RDWR | os.O_CREAT))
        self._files.sync_folder(self.path.parent)

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[Txn]:
        """One transaction: committed when the block ends, rolled back when it raises.

        ``durable``: on disk when this returns (one fsync). Otherwise a power cut may undo it (a killed process
        does not), but never out of order: the next durable commit takes it along.
        """
        with self._lock, failures(self.path):
            con = self._open_writer()
            if durable != self._durable:
                con.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            con.execute("BEGIN IMMEDIATE")
            txn = Txn(con)
            try:
                yield txn
                con.execute("COMMIT")
            except BaseException:
                if con.in_transaction:
                    with suppress(sqlite3.Error):
                        con.execute("ROLLBACK")
                raise
            txn.written = self._account()

    def _open_writer(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreFailed(f"{self.path}: the store is closed")
        return self._writer

    def _account(self) -> int:
        """Count what the log grew by; checkpoint it when it is long."""
        try:
            size = self._files.path_size(self._wal)
            grown = 2 * max(size - self._wal_size, 0)
            self._wal_size = size
            self.written += grown
            if size >= self._checkpoint_at or self._scrub_due:
                self._checkpoint()
        except OSError as error:  # what was committed must not look as if it had failed
            log.warning("%s cannot be measured: %s", self._wal, error)
            return 0
        return grown

    def empty_log(self) -> None:
        """Give back the room that the log takes, as far as that is possible now."""
        with self._lock, failures(self.path):
            if not self._closed:
                self._checkpoint()

    def scrub(self) -> None:
        """Let nothing that was deleted stay readable: its pages in the database are overwritten by what the log has,
        and the log is emptied. If that cannot be now, it is tried again after each commit, and at the next opening.
        """
        with self._lock, failures(self.path):
            if not self._closed:  # closing empties the log, too
                self._scrub_due = True
                self._checkpoint()

    def _checkpoint(self) -> None:
        try:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._wal_size = self._files.path_size(self._wal)
        except (sqlite3.Error, OSError) as error:  # the data is safe in the log; there may be room or leisure later
            log.warning("checkpoint of %s put off: %s", self.path, error)
        # If a foreign reader kept the log from being emptied, do not wait for it on every commit.
        self._checkpoint_at = self._wal_size + self._wal_limit
        self._scrub_due = self._scrub_due and self._wal_size > 0

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading. Several statements see one state only inside BEGIN ... ROLLBACK."""
        with failures(self.path):
            con = self._borrow()
            try:
                yield con
            except BaseException:
                con.close()  # whatever state it is in, nobody else gets it
                raise
            self._give_back(con)

    def _borrow(self) -> sqlite3.Connection:
        with self._idle_lock:
            if self._closed:
                raise StoreFailed(f"{self.path}: the store is closed")
            if self._idle:
                return self._idle.pop()
        con = self._files.connect(self.path)
        try:
            prepare_reader(con)
        except BaseException:
            con.close()
            raise
        return con

    def _give_back(self, con: sqlite3.Connection) -> None:
        if con.in_transaction:
            con.execute("ROLLBACK")
        with self._idle_lock:
            if not self._closed:
                self._idle.append(con)
                return
        con.close()

    def size(self) -> int:
        """Bytes of the database and its log."""
        with failures(self.path):
            return self._files.path_size(self.path) + self._files.path_size(self._wal)

    def close(self) -> None:
        with self._lock, self._idle_lock:
            if self._closed:
                return
            self._closed = True
            for con in self._idle:
                con.close()
            self._idle.clear()
            with suppress(sqlite3.Error):
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._writer.close()

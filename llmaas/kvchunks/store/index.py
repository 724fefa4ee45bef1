"""The index database: short write transactions on one connection, concurrent reads on others.

Law: one connection writes, under one lock, in transactions that hold no payload I/O. Readers borrow connections of
their own from a pool and see the last commit. A commit that succeeded is never reported as failed.

Rejected: one connection for all, under one lock. A read then waits behind the fsync of a running token commit
(docs/format.md has the figures). Rejected: a connection per thread kept in thread-local storage; those of dead
threads stay open until the store closes.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmaas.errors import DiskFull, StoreFailed
from llmaas.kvchunks.store.opening import prepare_reader, prepare_writer
from llmaas.kvchunks.store.soundness import check_header
from llmaas.kvchunks.store.syscalls import Files, failures

log = logging.getLogger(__name__)


class Txn:
    """A write transaction."""

    __slots__ = ("after_commit", "con", "written")

    def __init__(self, con: sqlite3.Connection) -> None:
        self.con = con
        self.after_commit: list[Callable[[], object]] = []
        """Called once the transaction is committed and the write lock is free; never, if it is rolled back."""
        self.written = 0
        """Bytes that this transaction costs the disk at most, set when it is committed: what it added to the log,
        counted twice, since a checkpoint copies each page of the log into the database once more. It may cost less:
        pages that were logged repeatedly are copied once.
        """


class Index:
    """SQLite file ``path``; created, migrated and recovered from its log on opening. Raises DiskFull, StoreFailed.

    ``wal_limit`` is the length in bytes at which the log is copied into the database ("checkpoint").
    """

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
            check_header(path)
            self._writer = files.connect(path)
            try:
                prepare_writer(self._writer, path)
            except BaseException:
                self._writer.close()
                raise
            self._wal_size = files.path_size(self._wal)
        self._checkpoint_at = wal_limit
        if self._wal_size:  # a killed process left it, and in it perhaps what a deletion should have overwritten
            self._checkpoint()

    def _create_private(self) -> None:
        """Create the file before SQLite does, with its mode: SQLite gives its log the mode of the database."""
        if self._files.path_size(self.path):
            return
        self._files.close(self._files.open(self.path, os.O_RDWR | os.O_CREAT))
        self._files.sync_folder(self.path.parent)

    # -- writing

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[Txn]:
        """One transaction: committed when the block ends, rolled back when it raises.

        ``durable``: on disk when this returns (one fsync). Otherwise a power cut may undo it (a killed process does
        not), but never out of order: the next durable commit takes it along.
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
            txn.written = self._measure_log()
        for action in txn.after_commit:
            action()

    def _open_writer(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreFailed(f"{self.path}: the store is closed")
        return self._writer

    def _measure_log(self) -> int:
        """Twice the bytes that the log grew by since it was last measured. Checkpoints the log if it is long."""
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
        """Free the disk space that the log takes, as far as that is possible now."""
        with self._lock, failures(self.path):
            if not self._closed:
                self._checkpoint()

    def scrub(self) -> None:
        """Make what was deleted unreadable: copy the log, whose pages overwrite it, into the database, and empty it.

        If that is not possible now, it is tried again after each commit, and at the next opening.
        """
        with self._lock, failures(self.path):
            if not self._closed:  # closing empties the log, too
                self._scrub_due = True
                self._checkpoint()

    def rewrite(self) -> None:
        """Write the whole database anew, without what moved and deleted rows may have left in its pages.

        Takes as much disk as the database while it lasts, there and in the folder for temporary files. Raises DiskFull.
        """
        with self._lock, failures(self.path):
            con = self._open_writer()
            size = self._files.path_size(self.path) + self._wal_size
            if self._files.room(self.path.parent) < 2 * size + self._wal_limit:
                raise DiskFull(f"{self.path}: no room to write the index anew ({size} bytes)")
            con.execute("PRAGMA synchronous = FULL")
            self._durable = True
            con.execute("VACUUM")
            self._measure_log()

    def _checkpoint(self) -> None:
        try:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._wal_size = self._files.path_size(self._wal)
        except (sqlite3.Error, OSError) as error:  # the data is safe in the log; a later checkpoint may succeed
            log.warning("checkpoint of %s put off: %s", self.path, error)
        # If a foreign reader kept the log from being emptied, do not wait for it on every commit.
        self._checkpoint_at = self._wal_size + self._wal_limit
        self._scrub_due = self._scrub_due and self._wal_size > 0

    # -- reading

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
            self._return(con)

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

    def _return(self, con: sqlite3.Connection) -> None:
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
        """Empty the log and close all connections. Idempotent."""
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

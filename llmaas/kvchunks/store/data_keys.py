"""The table ``keys``: one data key for each context, wrapped (encrypted) with the master key.

Law: a data key is in clear only in memory. When its context is deleted, its row is overwritten and the log that may
hold a copy of it is emptied; then nothing encrypted with that key can be decrypted any more, not even by somebody who
has the files and the master key.
"""

from __future__ import annotations

import logging
import threading

from llmaas.errors import MachineError
from llmaas.kvchunks.store.cipher import OVERHEAD, CipherKey, MasterKey
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.reports import Encryption
from llmaas.kvchunks.store.rows import Place
from llmaas.records import ContextId

log = logging.getLogger(__name__)

_IDLE = (
    "NOT EXISTS (SELECT 1 FROM contexts WHERE contexts.id = keys.context)"
    " AND NOT EXISTS (SELECT 1 FROM files WHERE files.seal = keys.id)"
)
"""Condition on rows of ``keys``: neither a context nor a file needs the key. A write that was under way when its
context was deleted makes such a key.
"""
_OF_CONTEXT = "(SELECT id FROM keys WHERE context = ?)"
ENCRYPTED_FOR = f"file IN (SELECT id FROM files WHERE seal IN {_OF_CONTEXT})"
"""Condition on rows of ``chunks``: encrypted with a data key of one context."""


class DataKeys:
    """Data keys by number. ``master`` None: nothing is encrypted, and what is encrypted cannot be decrypted."""

    def __init__(self, index: Index, master: MasterKey | None) -> None:
        self._index = index
        self._master = master
        self._lock = threading.Lock()
        self._known: dict[int, CipherKey | None] = {}
        self._warned = False

    # -- using them

    def for_writing(self, ctx: ContextId) -> tuple[int | None, CipherKey | None]:
        """Number and key that chunks of ``ctx`` are encrypted with, made if need be; (None, None) for no encryption."""
        if self._master is None:
            return None, None
        with self._index.read() as con:
            rows = con.execute("SELECT id FROM keys WHERE context = ? ORDER BY id DESC", (ctx,)).fetchall()
        for (number,) in rows:
            if key := self.get(number):
                return number, key
        cipher, wrapped, key = self._master.make(ctx)
        # Not durable, but commits keep their order: no chunk row is on disk without the row of its key.
        with self._index.write(durable=False) as txn:
            done = txn.con.execute(
                "INSERT INTO keys (context, cipher, wrapped) VALUES (?, ?, ?)", (ctx, cipher, wrapped)
            )
            assert done.lastrowid is not None
            number = done.lastrowid
        with self._lock:
            self._known[number] = key
        return number, key

    def get(self, number: int) -> CipherKey | None:
        """None if the key has been deleted, or was wrapped with another master key."""
        with self._lock:
            if number in self._known:
                return self._known[number]
        with self._index.read() as con:
            row = con.execute("SELECT context, cipher, wrapped FROM keys WHERE id = ?", (number,)).fetchone()
        if row is None:
            return None
        key = self._master.unwrap(*row) if self._master else None
        with self._lock:
            self._known[number] = key
        return key

    def warn_of_locked(self, chunks: int) -> None:
        """Log a warning, once, that so many chunks cannot be decrypted."""
        if chunks and not self._warned:
            self._warned = True
            why = "encryption is off" if self._master is None else "the master key is not the one they were made with"
            log.warning("%d chunks on disk cannot be opened: %s; they count as missing and are recomputed", chunks, why)

    def usable(self, place: Place) -> bool:
        """False if the chunk is encrypted with a key that cannot be had."""
        return place.data_key is None or self.get(place.data_key) is not None

    def decrypt(self, place: Place, view: memoryview, *, in_place: bool = False) -> memoryview | bytes | None:
        """The coded chunk, from its bytes on disk; None if they do not decrypt. ``in_place``: where ``view`` is."""
        if place.data_key is None:
            return view
        key = self.get(place.data_key)
        return key.decrypt_chunk(view, place.key, in_place=in_place) if key else None

    def of(self, ctx: ContextId) -> set[int]:
        """Numbers of the context's data keys."""
        with self._index.read() as con:
            return {row[0] for row in con.execute("SELECT id FROM keys WHERE context = ?", (ctx,))}

    # -- deleting them

    def delete_of(self, txn: Txn, ctx: ContextId) -> list[int]:
        """Delete the data keys of ``ctx``, and the rows of all that is encrypted with them. Once ``txn`` is committed,
        the keys are erased from the database's files, too.

        Returns the payload files that no row names then.
        """
        con, of = txn.con, (ctx,)
        files = [row[0] for row in con.execute(f"SELECT id FROM files WHERE seal IN {_OF_CONTEXT}", of)]
        con.execute(f"DELETE FROM chunks WHERE {ENCRYPTED_FOR}", of)
        con.execute(f"DELETE FROM files WHERE seal IN {_OF_CONTEXT}", of)
        con.execute("DELETE FROM keys WHERE context = ?", of)
        txn.after_commit.append(self._erase)
        return files

    def delete_idle(self, txn: Txn) -> None:
        """Delete the keys that neither a context nor a file needs. They are erased once ``txn`` is committed."""
        if txn.con.execute(f"DELETE FROM keys WHERE {_IDLE}").rowcount:
            txn.after_commit.append(self._erase)

    def _erase(self) -> None:
        """Drop the keys from memory, where those still in use are read again, and deleted ones from the index's log."""
        with self._lock:
            self._known.clear()
        self._index.scrub()

    def tidy(self) -> None:
        """At opening: ``delete_idle``, if there is such a key."""
        with self._index.read() as con:
            idle = con.execute(f"SELECT EXISTS (SELECT 1 FROM keys WHERE {_IDLE})").fetchone()[0]
        if idle:
            try:
                with self._index.write(durable=False) as txn:
                    self.delete_idle(txn)
            except MachineError as error:  # a full disk must not keep the store closed
                log.warning("keys that nothing needs stay: %s", error)

    # -- reporting

    def report(self) -> Encryption:
        """How the chunks on disk are encrypted."""
        with self._index.read() as con:
            numbers = con.execute("SELECT id, cipher FROM keys").fetchall()
            chunks = con.execute(
                "SELECT seal, count(*) FROM chunks JOIN files ON files.id = file GROUP BY seal"
            ).fetchall()
        fit = {number for number, _ in numbers if self.get(number) is not None}
        return Encryption(
            ciphers=tuple(sorted({cipher for _, cipher in numbers})),
            keys=len(numbers),
            keys_that_fit=len(fit),
            plain=sum(n for number, n in chunks if number is None),
            locked=sum(n for number, n in chunks if number is not None and number not in fit),
        )


def plain_size(data_key: int | None, nbytes: int) -> int:
    """Bytes of a coded chunk that takes ``nbytes`` on disk."""
    return nbytes if data_key is None else nbytes - OVERHEAD


def stored_size(key: CipherKey | None, nbytes: int) -> int:
    """Bytes that a coded chunk of so many takes on disk."""
    return nbytes if key is None else nbytes + OVERHEAD

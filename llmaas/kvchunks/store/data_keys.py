"""The table ``keys``: one data key for each context, wrapped under the master key.

Law: a data key is in clear only in memory. When its context is deleted its row is overwritten, and the log that may
hold a copy is emptied; then nothing under that key can be opened any more, whoever has the files and the master key.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

from llmaas.errors import MachineError
from llmaas.kvchunks.store.cipher import OVERHEAD, CipherKey, Data, MasterKey
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.rows import Encryption, Place
from llmaas.records import ChunkKey, ContextId

log = logging.getLogger(__name__)

_IDLE = (
    "NOT EXISTS (SELECT 1 FROM contexts WHERE contexts.id = keys.context)"
    " AND NOT EXISTS (SELECT 1 FROM files WHERE files.seal = keys.id)"
)
_OF_CONTEXT = "(SELECT id FROM keys WHERE context = ?)"
ENCRYPTED_FOR = f"file IN (SELECT id FROM files WHERE seal IN {_OF_CONTEXT})"
"""Condition on rows of ``chunks``: sealed under a key of one context."""


class DataKeys:
    """Data keys by number. ``master`` None: nothing is sealed, and what is sealed cannot be opened."""

    def __init__(self, index: Index, master: MasterKey | None) -> None:
        self._index = index
        self._master = master
        self._lock = threading.Lock()
        self._known: dict[int, CipherKey | None] = {}
        self._warned = False

    @property
    def sealing(self) -> bool:
        """Whether what is written from now on is sealed."""
        return self._master is not None

    # -- using them

    def for_writing(self, ctx: ContextId) -> tuple[int | None, CipherKey | None]:
        """The key of ``ctx``, made if need be; (None, None) if nothing is to be sealed."""
        if self._master is None:
            return None, None
        with self._index.read() as con:
            rows = con.execute("SELECT id FROM keys WHERE context = ? ORDER BY id DESC", (ctx,)).fetchall()
        for (number,) in rows:
            if sealer := self.get(number):
                return number, sealer
        cipher, wrapped, sealer = self._master.make(ctx)
        with self._index.write(durable=False) as txn:  # in order: a chunk row is never there without its key's
            done = txn.con.execute(
                "INSERT INTO keys (context, cipher, wrapped) VALUES (?, ?, ?)", (ctx, cipher, wrapped)
            )
            assert done.lastrowid is not None
            number = done.lastrowid
        with self._lock:
            self._known[number] = sealer
        return number, sealer

    def get(self, number: int) -> CipherKey | None:
        """None if there is no such key any more, or it was wrapped under another master key."""
        with self._lock:
            if number in self._known:
                return self._known[number]
        with self._index.read() as con:
            row = con.execute("SELECT context, cipher, wrapped FROM keys WHERE id = ?", (number,)).fetchone()
        if row is None:
            return None
        sealer = self._master.unwrap(*row) if self._master else None
        with self._lock:
            self._known[number] = sealer
        return sealer

    def warn_of(self, chunks: int) -> None:
        """Say, once, that so many chunks cannot be opened."""
        if chunks and not self._warned:
            self._warned = True
            why = "encryption is off" if self._master is None else "the master key is not the one they were made with"
            log.warning("%d chunks on disk cannot be opened: %s; they count as missing and are recomputed", chunks, why)

    def usable(self, place: Place) -> bool:
        """False if the chunk is sealed under a key that cannot be had."""
        return place.seal is None or self.get(place.seal) is not None

    def open(self, place: Place, view: memoryview) -> memoryview | bytes | None:
        """The chunk's own bytes; None if they do not open."""
        if place.seal is None:
            return view
        sealer = self.get(place.seal)
        return sealer.decrypt(view, place.key) if sealer else None

    def of(self, ctx: ContextId) -> set[int]:
        with self._index.read() as con:
            return {row[0] for row in con.execute("SELECT id FROM keys WHERE context = ?", (ctx,))}

    # -- ending them

    def destroy(self, txn: Txn, ctx: ContextId) -> list[int]:
        """Delete the keys of ``ctx`` and the rows of all that is sealed under them; the files that this empties.

        The caller then scrubs the index, unlinks the files, and calls ``forget``.
        """
        con, of = txn.con, (ctx,)
        files = [row[0] for row in con.execute(f"SELECT id FROM files WHERE seal IN {_OF_CONTEXT}", of)]
        con.execute(f"DELETE FROM chunks WHERE {ENCRYPTED_FOR}", of)
        con.execute(f"DELETE FROM files WHERE seal IN {_OF_CONTEXT}", of)
        con.execute("DELETE FROM keys WHERE context = ?", of)
        return files

    def sweep(self, txn: Txn) -> int:
        """Delete the keys that have neither context nor file; how many. A write that was under way when its context
        was deleted makes such a key.
        """
        return txn.con.execute(f"DELETE FROM keys WHERE {_IDLE}").rowcount

    def tidy(self) -> None:
        """At opening: ``sweep``, if there is need."""
        with self._index.read() as con:
            idle = con.execute(f"SELECT EXISTS (SELECT 1 FROM keys WHERE {_IDLE})").fetchone()[0]
        if idle:
            try:
                with self._index.write(durable=False) as txn:
                    self.sweep(txn)
                self._index.scrub()
            except MachineError as error:  # a full disk must not keep the store closed
                log.warning("keys that nothing needs stay: %s", error)

    def forget(self) -> None:
        """Drop the keys from memory; those still in use are read again."""
        with self._lock:
            self._known.clear()

    # -- telling about them

    def report(self) -> Encryption:
        with self._index.read() as con:
            numbers = con.execute("SELECT id, cipher FROM keys").fetchall()
            chunks = con.execute(
                "SELECT seal, count(*) FROM chunks JOIN files ON files.id = file GROUP BY seal"
            ).fetchall()
        fit = {number for number, _ in numbers if self.get(number) is not None}
        told = Encryption(
            ciphers=tuple(sorted({cipher for _, cipher in numbers})), keys=len(numbers), keys_that_fit=len(fit)
        )
        return replace(
            told,
            plain=sum(n for seal, n in chunks if seal is None),
            locked=sum(n for seal, n in chunks if seal is not None and seal not in fit),
        )


def plain_size(seal: int | None, nbytes: int) -> int:
    """Bytes of a chunk that takes ``nbytes`` on disk."""
    return nbytes if seal is None else nbytes - OVERHEAD


def encrypt_all(sealer: CipherKey | None, items: Sequence[tuple[ChunkKey, Data]]) -> list[memoryview]:
    """What is written for each (key, bytes)."""
    return [memoryview(sealer.encrypt(data, key) if sealer else data) for key, data in items]

"""Coded chunks on disk: put, get, discard.

Law: bytes first, then the index row; index row first, then the deletion. One thread at a time changes payload files
(``_lock``, always taken before the index's lock); getting takes no lock. Token commits do not wait for payload writes.
Chunk rows are committed without fsync: a lost row is a miss, and a miss is recomputed. With a master key, chunks are
encrypted before they are written and decrypted after they were read; only here, so the POOL is in clear.

The parts: ``chunk_table`` (rows), ``payload_files`` (bytes), ``appender`` (writing both), ``compaction``, ``handover``
(chunks of deleted contexts that others share).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from llmaas.errors import DiskFull, MachineError
from llmaas.kvchunks.store.appender import Appender
from llmaas.kvchunks.store.chunk_table import ChunkTable
from llmaas.kvchunks.store.compaction import Compactor
from llmaas.kvchunks.store.data_keys import DataKeys, plain_size
from llmaas.kvchunks.store.handover import Handover
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.payload_files import PayloadFiles
from llmaas.kvchunks.store.rows import Place, SealedChunk, StoredChunk
from llmaas.records import ChunkKey, ChunkMeta, ChunkSensitivity, ContextId

log = logging.getLogger(__name__)

Blob = bytes | bytearray | memoryview


class Chunks:
    """The tables ``files`` and ``chunks`` and the payload files. ``Store`` says what each method does and raises."""

    def __init__(self, index: Index, payload: PayloadFiles, keys: DataKeys) -> None:
        self._index, self._payload, self._keys = index, payload, keys
        self._table = ChunkTable(index)
        self._appender = Appender(index, self._table, payload, keys)
        self._compactor = Compactor(index, self._table, payload, self._appender)
        self._handover = Handover(self._table, payload, keys, self._appender)
        self._lock = threading.Lock()
        self.damaged = 0
        """Chunks whose bytes turned out missing, short or unreadable."""

    @contextmanager
    def frozen(self) -> Iterator[Callable[[Sequence[Place]], int]]:
        """For the time of the block no payload file changes, except by the function that the block gets.

        It drops the chunks that are still at the places it is given, and returns how many.
        """
        with self._lock:
            yield self._drop

    # -- put

    def put(
        self, ctx: ContextId, items: Sequence[tuple[ChunkKey, int, Blob]], meta: Mapping[ChunkKey, ChunkMeta]
    ) -> int:
        with self._lock:
            stored = self._usable([key for key, _, _ in items])
            fresh = {key: (n_tokens, _view(data)) for key, n_tokens, data in items if key not in stored}
            if not fresh:
                return 0
            with self._appender.append(ctx, [(key, view) for key, (_, view) in fresh.items()]) as done:
                known = [(n_tokens, meta.get(key)) for key, (n_tokens, _) in fresh.items()]
                self._table.insert(done.txn, done.places, done.checksums, known)
            return sum(place.nbytes for place in done.places) + done.txn.written

    def _usable(self, keys: Iterable[ChunkKey]) -> set[ChunkKey]:
        """The chunks that are stored. Those that cannot be decrypted are dropped first, to be put again."""
        found = self._table.find(keys)
        locked = [place for place in found if not self._keys.usable(place)]
        self._drop(locked)
        return {place.key for place in found} - {place.key for place in locked}

    def persist_sensitivity(self, sensitivities: Mapping[ChunkKey, ChunkSensitivity]) -> None:
        with self._index.write(durable=False) as txn:
            self._table.set_sensitivity(txn, sensitivities.items())

    # -- get

    def get(self, keys: Sequence[ChunkKey], *, in_place: bool = False) -> list[memoryview | bytes | None]:
        found: dict[ChunkKey, memoryview | bytes] = {}
        given_up: set[Place] = set()
        missing = list(keys)
        while missing:
            damaged, again = [], []
            places = [place for place in self._table.find(missing) if place not in given_up]
            for place, view in self._payload.read(places):
                chunk = None if view is None else self._keys.decrypt(place, view, in_place=in_place)
                if chunk is not None:
                    found[place.key] = chunk
                elif self._keys.usable(place):
                    damaged.append(place)
                else:  # its key cannot be had, or was deleted when the chunk was handed over: look where it is now
                    given_up.add(place)
                    again.append(place.key)
            given_up.update(damaged)  # a row that is damaged itself may not be found for dropping
            # Damaged, or moved by a compaction since the look-up: rows that still name the place go, and the keys are
            # looked up again.
            missing = again + ([place.key for place in damaged] if self._drop_damaged(damaged) else [])
        return [found.get(key) for key in keys]

    def places(self, keys: Sequence[ChunkKey]) -> list[Place]:
        return sorted(self._table.find(keys), key=lambda place: (place.file, place.offset))

    def read(self, places: Sequence[Place], *, once: bool = False) -> list[SealedChunk]:
        return [SealedChunk(place, view) for place, view in self._payload.read(places, once=once)]

    def open(self, sealed: SealedChunk) -> memoryview | bytes | None:
        chunk = None if sealed.data is None else self._keys.decrypt(sealed.place, sealed.data)
        # Damaged, or no longer where it was: ``get`` finds out, and does what there is to do.
        return self.get([sealed.place.key])[0] if chunk is None else chunk

    def all(self) -> Iterator[StoredChunk]:
        rows = self._table.rows()
        locked = {n for n in {row.data_key for row in rows} if n is not None and self._keys.get(n) is None}
        self._keys.warn_of_locked(sum(row.data_key in locked for row in rows))
        if wrong := sum(not row.meta_is_right for row in rows):
            log.warning("what was measured of %d chunks is impossible, and forgotten: it is measured again", wrong)
        return (
            StoredChunk(row.key, row.n_tokens, plain_size(row.data_key, row.nbytes), row.meta)
            for row in rows
            if row.data_key not in locked
        )

    # -- drop: chunks that are of no use

    def drop_plain(self) -> int:
        with self._lock:
            return self._drop(self._table.plain_places())

    def _drop_damaged(self, places: Sequence[Place]) -> bool:
        """False if there was nothing to do, or the index cannot be written now."""
        if not places:
            return False
        try:
            with self._lock:
                self.damaged += self._drop(places)
        except MachineError as error:
            log.warning("rows of %d unreadable chunks stay: %s", len(places), error)
            self.damaged += len(places)
            return False
        return True

    def _drop(self, places: Sequence[Place]) -> int:
        """Delete the chunks that are still at these places, and files that are empty then. Returns how many chunks."""
        if not places:
            return 0
        with self._index.write(durable=False) as txn:
            dropped = self._table.delete(txn, places)
            files = dict.fromkeys(place.file for place in places)
            emptied = [file for file in files if self._table.delete_empty_file(txn, file)]
            if emptied:
                self._keys.delete_idle(txn)
        self._unlink(emptied)
        return dropped

    def _unlink(self, files: Iterable[int]) -> int:
        """Delete payload files. Returns the bytes freed."""
        return sum(map(self._payload.unlink, files))

    # -- discard: chunks that nobody needs

    def discard(self, keys: Iterable[ChunkKey]) -> int:
        with self._lock:
            places = self._table.find(keys)
            gone = Counter(place.file for place in places)
            held = self._table.counts(gone)
            emptied = [file for file in gone if gone[file] == held[file]]
            freed = self._remove(places, emptied)
            return freed + sum(self._compactor.compact_if_worth(file) for file in gone if gone[file] < held[file])

    def _remove(self, places: Sequence[Place], emptied: Sequence[int]) -> int:
        """Delete rows, then the files that this empties. Returns the bytes freed.

        On a disk so full that not even the log can grow, the files go first, or nothing could ever be freed. A crash in
        between leaves rows without files, which are misses, and the next opening drops them.
        """
        freed = 0
        try:
            self._delete_rows(places, emptied)
        except DiskFull:
            if not emptied:
                raise
            freed = self._unlink(emptied)
            self._delete_rows(places, emptied)
        return freed + self._unlink(emptied)

    def _delete_rows(self, places: Sequence[Place], emptied: Sequence[int]) -> None:
        with self._index.write(durable=False) as txn:
            self._table.delete(txn, places)
            self._table.delete_files(txn, emptied)
            if emptied:
                self._keys.delete_idle(txn)

    # -- deleting a context

    def encrypted_for(self, ctx: ContextId) -> set[ChunkKey]:
        return self._table.encrypted_for(ctx)

    def delete_context(
        self,
        ctx: ContextId,
        heirs: Mapping[ChunkKey, ContextId],
        delete: Callable[[Callable[[Txn], None]], None],
    ) -> list[ChunkKey]:
        """Delete the context's rows by ``delete``, and its data keys and what is encrypted with them in the same
        transaction, after shared chunks have been handed over to ``heirs``. Returns the chunks that are gone.

        Killed before the commit, the context is still there, and whole; killed after it, the next opening finishes the
        deletion.
        """
        with self._lock:
            self._handover.hand_over(ctx, heirs)
            gone = list(self.encrypted_for(ctx))
            files: list[int] = []

            def delete_keys(txn: Txn) -> None:
                files[:] = self._keys.delete_of(txn, ctx)

            for owner in (ctx, None):
                try:
                    delete(delete_keys)
                    break
                except DiskFull:
                    self._make_room(owner)
            else:
                delete(delete_keys)
            self._unlink(files)
            return gone

    def _make_room(self, owner: ContextId | None) -> None:
        """Unlink the files of ``owner``, or all files, on a disk so full that not even the log can grow.

        Chunks can be recomputed; their rows are misses until they are dropped.
        """
        self._index.empty_log()
        self._unlink(self._table.files_of(owner))


def _view(data: Blob) -> memoryview:
    view = memoryview(data).cast("B")
    if not len(view):
        raise ValueError("a chunk has at least one byte")
    return view

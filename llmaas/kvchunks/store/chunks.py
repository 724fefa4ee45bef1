"""Coded chunks on disk: put, get, discard.

Law: bytes first, then the index row; index row first, then the deletion. One thread at a time changes payload
files (``_lock``, always taken before the index's lock); getting takes no lock. Token commits do not wait for
payload writes. Chunk rows are committed without fsync: a lost row is a miss, and a miss is recomputed. With a master
key, chunks are sealed before they are written and opened after they were read; only here, so the POOL is in clear.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import xxhash

from llmaas.errors import DiskFull, MachineError
from llmaas.kvchunks.store.data_keys import ENCRYPTED_FOR, DataKeys, encrypt_all, plain_size
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.payload_files import PayloadFiles
from llmaas.kvchunks.store.rows import Place, StoredChunk
from llmaas.records import ChunkKey, ChunkMeta, ChunkSensitivity, ContextId, Precision

log = logging.getLogger(__name__)

Blob = bytes | bytearray | memoryview
Deed = Callable[[Txn], None]

_KEYS_PER_QUERY = 256
_NOTES = ("k_bits", "v_bits", "k_change", "v_change", "density", "weight", "measured_at")
_HANDED_AT_ONCE = 16
_PLACES = "SELECT key, file, offset, nbytes, seal FROM chunks JOIN files ON files.id = file"
_DEAD_ENOUGH = 1 << 20
"""Bytes: below this, a mostly dead file is not worth rewriting."""


class Chunks:
    """The tables ``files`` and ``chunks`` and the payload files."""

    def __init__(self, index: Index, payload: PayloadFiles, keys: DataKeys) -> None:
        self._index = index
        self._payload = payload
        self._keys = keys
        self._lock = threading.Lock()
        self._next_file = self._first_free_file()
        self.damaged = 0

    def _first_free_file(self) -> int:
        """Above every number in the index or on disk: a number that comes back could show old bytes as new."""
        with self._index.read() as con:
            used = con.execute("SELECT max(id) FROM files").fetchone()[0] or 0
        return 1 + max(used, *self._payload.sizes(), 0)

    @contextmanager
    def still(self) -> Iterator[None]:
        """While this is held, no payload file changes."""
        with self._lock:
            yield

    # -- put

    def put(
        self, ctx: ContextId, items: Sequence[tuple[ChunkKey, int, Blob]], notes: Mapping[ChunkKey, ChunkMeta]
    ) -> int:
        with self._lock:
            found = self._find([key for key, _, _ in items])
            if locked := [place for place in found if not self._keys.usable(place)]:
                self.drop(locked)
            known = {place.key for place in found} - {place.key for place in locked}
            fresh = {key: (n_tokens, _view(data)) for key, n_tokens, data in items if key not in known}
            if not fresh:
                return 0
            with self._appended(ctx, [(key, view) for key, (_, view) in fresh.items()]) as (txn, places, sums):
                rows = [
                    (p.file, p.offset, p.nbytes, fresh[p.key][0], c, p.key, *_columns(notes.get(p.key)))
                    for p, c in zip(places, sums, strict=True)
                ]
                columns = f"file, offset, nbytes, n_tokens, checksum, key, {', '.join(_NOTES)}"
                txn.con.executemany(f"INSERT INTO chunks ({columns}) VALUES ({', '.join('?' * len(rows[0]))})", rows)
            return sum(place.nbytes for place in places) + txn.written

    @contextmanager
    def _appended(
        self, ctx: ContextId, items: Sequence[tuple[ChunkKey, memoryview | bytes]]
    ) -> Iterator[tuple[Txn, list[Place], list[bytes]]]:
        """Write chunks to the tail of the context's files, sealed if they are to be, and let the block index them.

        The block gets the transaction, where each chunk is now, and the checksum of what was written.
        """
        seal, sealer = self._keys.for_writing(ctx)
        views = encrypt_all(sealer, items)
        file, end = self._tail(ctx, seal)
        offset = self._payload.append(file, views, start=end)
        places, at = [], offset
        for (key, _), view in zip(items, views, strict=True):
            places.append(Place(key, file, at, len(view), seal))
            at += len(view)
        try:
            with self._index.write(durable=False) as txn:
                if not end:
                    txn.con.execute("INSERT INTO files (id, context, seal) VALUES (?, ?, ?)", (file, ctx, seal))
                yield txn, places, [checksum(view) for view in views]
        except BaseException:
            self._payload.cut(file, offset)
            raise

    def _tail(self, ctx: ContextId, seal: int | None) -> tuple[int, int]:
        """The file that the context's next chunks go to, and where the index says that it ends (0: a new file)."""
        with self._index.read() as con:
            row = con.execute(
                "SELECT file, max(offset + nbytes) FROM chunks"
                " WHERE file = (SELECT max(id) FROM files WHERE context = ? AND seal IS ?) GROUP BY file",
                (ctx, seal),
            ).fetchone()
        # A file that is gone or short gets no more bytes: rows that still name it would then find others' (or a hole).
        return (row[0], row[1]) if row and self._payload.size(row[0]) >= row[1] else (self._new_file(), 0)

    def _new_file(self) -> int:
        self._next_file += 1
        return self._next_file - 1

    def persist_sensitivity(self, sensitivities: Mapping[ChunkKey, ChunkSensitivity]) -> None:
        with self._index.write(durable=False) as txn:
            txn.con.executemany(
                "UPDATE chunks SET k_change = ?, v_change = ?, density = ?, weight = ?, measured_at = ? WHERE key = ?",
                [(*sensitivity, key) for key, sensitivity in sensitivities.items()],
            )

    # -- get

    def get(self, keys: Sequence[ChunkKey]) -> list[memoryview | bytes | None]:
        found: dict[ChunkKey, memoryview | bytes] = {}
        locked: set[Place] = set()
        missing = list(keys)
        while missing:
            bad, again = [], []
            for place, view in self._payload.read([p for p in self._find(missing) if p not in locked]):
                opened = None if view is None else self._keys.open(place, view)
                if opened is not None:
                    found[place.key] = opened
                elif self._keys.usable(place):
                    bad.append(place)
                else:  # its key is not to be had, or went when the chunk was handed over: look where it is now
                    locked.add(place)
                    again.append(place.key)
            # Bad, or moved by a compaction since we looked: the rows that still say so go, the others are tried again.
            missing = again + ([place.key for place in bad] if self._drop_bad(bad) else [])
        return [found.get(key) for key in keys]

    def _drop_bad(self, places: Sequence[Place]) -> bool:
        """False if there was nothing to do or the index cannot be written now."""
        if not places:
            return False
        try:
            with self._lock:
                self.damaged += self.drop(places)
        except MachineError as error:
            log.warning("rows of %d unreadable chunks stay: %s", len(places), error)
            self.damaged += len(places)
            return False
        return True

    def drop(self, places: Iterable[Place]) -> int:
        """Forget the chunks that are still at these places, and the files that hold nothing then; rows dropped.

        The caller holds ``still``.
        """
        by_file: dict[int, list[Place]] = {}
        for place in places:
            by_file.setdefault(place.file, []).append(place)
        with self._index.write(durable=False) as txn:
            dropped = sum(_delete(txn, group) for group in by_file.values())
            emptied = [file for file in by_file if _delete_file_if_empty(txn, file)]
            keys_gone = self._keys.sweep(txn) if emptied else 0
        self._after(emptied, scrub=keys_gone > 0)
        return dropped

    def _after(self, emptied: Sequence[int], *, scrub: bool = True) -> int:
        """All rows of these files are deleted, and with ``scrub`` keys, too: finish that; bytes freed."""
        if scrub:
            self._keys.forget()
            self._index.scrub()
        return sum(map(self._payload.unlink, emptied))

    # -- discard

    def discard(self, keys: Iterable[ChunkKey]) -> int:
        with self._lock:
            by_file: dict[int, list[Place]] = {}
            for place in self._find(list(keys)):
                by_file.setdefault(place.file, []).append(place)
            with self._index.read() as con:
                left = {
                    file: con.execute("SELECT count(*) FROM chunks WHERE file = ?", (file,)).fetchone()[0] - len(gone)
                    for file, gone in by_file.items()
                }
            emptied = [file for file in by_file if not left[file]]
            freed, keys_gone = self._unindex(by_file, emptied)
            freed += self._after(emptied, scrub=keys_gone > 0)
            return freed + sum(self._compact_if_worth(file) for file in by_file if left[file])

    def give_up(self, ctx: ContextId | None) -> None:
        """Unlink the files of ``ctx`` (None: all) on a disk so full that their rows cannot go first: misses then.

        The caller holds ``still``.
        """
        self._index.empty_log()
        with self._index.read() as con:
            files = con.execute("SELECT id FROM files WHERE ?1 IS NULL OR context = ?1", (ctx,)).fetchall()
        for (file,) in files:
            self._payload.unlink(file)

    # -- whose key

    def encrypted_for(self, ctx: ContextId) -> set[ChunkKey]:
        with self._index.read() as con:
            return {ChunkKey(row[0]) for row in con.execute(f"SELECT key FROM chunks WHERE {ENCRYPTED_FOR}", (ctx,))}

    def destroy(
        self, ctx: ContextId, heirs: Mapping[ChunkKey, ContextId], delete: Callable[[Deed], None]
    ) -> list[ChunkKey]:
        """Delete the context's rows by ``delete``, in one transaction with its data keys, after what others share has
        gone to them; then what its keys sealed is gone for good.

        Killed in between, the context is still there, and whole; killed afterwards, the next opening finishes it.
        """
        with self._lock:
            self._hand_over(ctx, heirs)
            gone = list(self.encrypted_for(ctx))
            files: list[int] = []
            delete(lambda txn: files.extend(self._keys.destroy(txn, ctx)))
            self._after(files)
            return gone

    def _hand_over(self, ctx: ContextId, heirs: Mapping[ChunkKey, ContextId]) -> None:
        """Seal chunks anew, each under the key of its heir. What cannot be handed over is recomputed when needed."""
        of_ctx = self._keys.of(ctx)
        shared = [place for place in self._find(list(heirs)) if place.seal in of_ctx]
        try:
            for heir in {heirs[place.key] for place in shared}:
                mine = [place for place in shared if heirs[place.key] == heir]
                for i in range(0, len(mine), _HANDED_AT_ONCE):
                    self._reseal(heir, mine[i : i + _HANDED_AT_ONCE])
        except MachineError as error:
            log.warning("chunks shared with a deleted context will be recomputed: %s", error)

    def _reseal(self, heir: ContextId, old: Sequence[Place]) -> None:
        read = [(p.key, self._keys.open(p, view)) for p, view in self._payload.read(old) if view is not None]
        opened = [(key, view) for key, view in read if view is not None]
        if opened:
            with self._appended(heir, opened) as (txn, places, sums):
                txn.con.executemany(
                    "UPDATE chunks SET file = ?, offset = ?, checksum = ? WHERE key = ?",
                    [(p.file, p.offset, c, p.key) for p, c in zip(places, sums, strict=True)],
                )

    def drop_plain(self) -> int:
        """Forget all chunks that are in clear, and delete their files; how many chunks."""
        with self._lock:
            with self._index.read() as con:
                places = [Place(*row) for row in con.execute(f"{_PLACES} WHERE seal IS NULL")]
            return self.drop(places)

    # -- the index

    def _unindex(self, by_file: dict[int, list[Place]], emptied: Sequence[int]) -> tuple[int, int]:
        """Commit the discard; bytes that had to be freed before it, and data keys that went with it.

        On a disk so full that not even the log can grow, the order is turned round, or nothing could ever be
        freed. A crash in between leaves rows without files, which are misses, and the next opening drops them.
        """
        freed = 0
        for last_try in (False, True):
            try:
                with self._index.write(durable=False) as txn:
                    for places in by_file.values():
                        _delete(txn, places)
                    txn.con.executemany("DELETE FROM files WHERE id = ?", [(file,) for file in emptied])
                    keys_gone = self._keys.sweep(txn) if emptied else 0
                return freed, keys_gone
            except DiskFull:
                if last_try or not emptied:
                    raise
                freed = sum(map(self._payload.unlink, emptied))
        return freed, 0

    def _compact_if_worth(self, file: int) -> int:
        """Rewrite a mostly dead file; bytes freed. There may be no room for the copy: then it stays as it is."""
        with self._index.read() as con:
            live = con.execute("SELECT sum(nbytes) FROM chunks WHERE file = ?", (file,)).fetchone()[0]
        size = self._payload.size(file)
        if size - live <= max(_DEAD_ENOUGH, live):
            return 0
        try:
            return size - self._compact(file)
        except MachineError as error:
            log.warning("%s stays fragmented: %s", self._payload.path(file), error)
            return 0

    def _compact(self, old: int) -> int:
        with self._index.read() as con:
            context, seal = con.execute("SELECT context, seal FROM files WHERE id = ?", (old,)).fetchone()
            rows = con.execute(f"{_PLACES} WHERE file = ? ORDER BY offset", (old,))
            places = [Place(*row) for row in rows]
        new = self._new_file()
        offsets = self._payload.copy(old, new, places)
        try:
            # Durable, because the old file goes for good.
            with self._index.write(durable=True) as txn:
                txn.con.execute("INSERT INTO files (id, context, seal) VALUES (?, ?, ?)", (new, context, seal))
                txn.con.executemany(
                    "UPDATE chunks SET file = ?, offset = ? WHERE file = ? AND offset = ?",
                    [(new, offset, old, place.offset) for offset, place in zip(offsets, places, strict=True)],
                )
                txn.con.execute("DELETE FROM files WHERE id = ?", (old,))
        except BaseException:
            self._payload.unlink(new)
            raise
        self._payload.unlink(old)
        return sum(place.nbytes for place in places)

    # -- looking

    def _find(self, keys: Sequence[ChunkKey]) -> list[Place]:
        todo = iter(dict.fromkeys(keys))
        found: list[Place] = []
        with self._index.read() as con:
            while batch := list(islice(todo, _KEYS_PER_QUERY)):
                marks = ", ".join("?" * len(batch))
                rows = con.execute(f"{_PLACES} WHERE key IN ({marks})", batch)
                found += [Place(*row) for row in rows]
        return found

    def all(self) -> Iterator[StoredChunk]:
        # Fetched at once: an open cursor would keep the log from being emptied for as long as the caller likes.
        with self._index.read() as con:
            rows = con.execute(
                f"SELECT key, n_tokens, nbytes, seal, {', '.join(_NOTES)} FROM chunks JOIN files ON files.id = file"
            ).fetchall()
        shut = {seal for seal in {row[3] for row in rows} if seal is not None and self._keys.get(seal) is None}
        self._keys.warn_of(sum(row[3] in shut for row in rows))
        return (
            StoredChunk(ChunkKey(key), n_tokens, plain_size(seal, nbytes), _notes(*notes))
            for key, n_tokens, nbytes, seal, *notes in rows
            if seal not in shut
        )


def checksum(view: memoryview) -> bytes:
    return xxhash.xxh3_64_digest(view)


def _view(data: Blob) -> memoryview:
    view = memoryview(data).cast("B")
    if not len(view):
        raise ValueError("a chunk has at least one byte")
    return view


def _columns(notes: ChunkMeta | None) -> tuple[float | None, ...]:
    if notes is None:
        return (None,) * len(_NOTES)
    unmeasured = (None,) * len(ChunkSensitivity._fields)
    return (notes.precision.k, notes.precision.v, *(notes.sensitivity or unmeasured))


def _notes(k_bits: int | None, v_bits: int | None, *measured: Any) -> ChunkMeta | None:
    if k_bits is None or v_bits is None:
        return None
    return ChunkMeta(Precision(k_bits, v_bits), None if measured[0] is None else ChunkSensitivity(*measured))


def _delete(txn: Txn, places: Sequence[Place]) -> int:
    """The key is named too: it says that the place still is what it was when we looked."""
    done = txn.con.executemany(
        "DELETE FROM chunks WHERE file = ? AND offset = ? AND key = ?", [(p.file, p.offset, p.key) for p in places]
    )
    return done.rowcount


def _delete_file_if_empty(txn: Txn, file: int) -> bool:
    done = txn.con.execute(
        "DELETE FROM files WHERE id = ? AND NOT EXISTS (SELECT 1 FROM chunks WHERE file = ?)", (file,) * 2
    )
    return done.rowcount > 0

"""The tables ``files`` and ``chunks``: where each chunk is, and what is known of it.

Law: it reads and writes rows, never payload files. A method that changes rows does so in its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from llmaas.kvchunks.store.chunk_meta import META, meta_columns, read_meta
from llmaas.kvchunks.store.data_keys import ENCRYPTED_FOR
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.rows import Place
from llmaas.records import ChunkKey, ChunkMeta, ChunkSensitivity, ContextId

_KEYS_PER_QUERY = 256
_INSERTED = ("file", "offset", "nbytes", "n_tokens", "checksum", "key", *META)
_PLACES = "SELECT key, file, offset, nbytes, seal FROM chunks JOIN files ON files.id = file"


class ChunkRow(NamedTuple):
    """A row of ``chunks``, without its place."""

    key: ChunkKey
    n_tokens: int
    nbytes: int
    data_key: int | None
    meta: ChunkMeta | None
    meta_is_right: bool
    """False if some of what was known is impossible: then ``meta`` has the rest."""


class ChunkTable:
    """Chunks by key and by file. Reading sees the last commit."""

    def __init__(self, index: Index) -> None:
        self._index = index

    # -- reading

    def find(self, keys: Iterable[ChunkKey]) -> list[Place]:
        """The places of those keys that are stored, in no particular order."""
        todo = iter(dict.fromkeys(keys))
        found: list[Place] = []
        with self._index.read() as con:
            while batch := list(islice(todo, _KEYS_PER_QUERY)):
                marks = ", ".join("?" * len(batch))
                found += [Place(*row) for row in con.execute(f"{_PLACES} WHERE key IN ({marks})", batch)]
        return found

    def places_in(self, file: int) -> list[Place]:
        """The places in one payload file, by offset."""
        with self._index.read() as con:
            return [Place(*row) for row in con.execute(f"{_PLACES} WHERE file = ? ORDER BY offset", (file,))]

    def plain_places(self) -> list[Place]:
        """The places of all chunks in clear."""
        with self._index.read() as con:
            return [Place(*row) for row in con.execute(f"{_PLACES} WHERE seal IS NULL")]

    def encrypted_for(self, ctx: ContextId) -> set[ChunkKey]:
        """The chunks that are encrypted with a data key of ``ctx``."""
        with self._index.read() as con:
            return {ChunkKey(row[0]) for row in con.execute(f"SELECT key FROM chunks WHERE {ENCRYPTED_FOR}", (ctx,))}

    def rows(self) -> list[ChunkRow]:
        """Every chunk."""
        # Fetched at once: an open cursor would keep the log from being emptied for as long as the caller likes.
        with self._index.read() as con:
            rows = con.execute(
                f"SELECT key, n_tokens, nbytes, seal, {', '.join(META)} FROM chunks JOIN files ON files.id = file"
            ).fetchall()
        return [ChunkRow(ChunkKey(key), n, nbytes, seal, *read_meta(meta)) for key, n, nbytes, seal, *meta in rows]

    def files_of(self, ctx: ContextId | None) -> list[int]:
        """The payload files of ``ctx``, or all of them."""
        with self._index.read() as con:
            return [row[0] for row in con.execute("SELECT id FROM files WHERE ?1 IS NULL OR context = ?1", (ctx,))]

    def owner(self, file: int) -> tuple[ContextId, int | None]:
        """The context whose chunks go to a file, and the number of the data key that they are encrypted with."""
        with self._index.read() as con:
            context, data_key = con.execute("SELECT context, seal FROM files WHERE id = ?", (file,)).fetchone()
        return ContextId(context), data_key

    def newest_file(self, ctx: ContextId, data_key: int | None) -> tuple[int, int] | None:
        """The newest file for chunks of ``ctx`` under that data key, and the end of its last chunk; None if none has
        chunks.
        """
        with self._index.read() as con:
            row = con.execute(
                "SELECT file, max(offset + nbytes) FROM chunks"
                " WHERE file = (SELECT max(id) FROM files WHERE context = ? AND seal IS ?) GROUP BY file",
                (ctx, data_key),
            ).fetchone()
        return (row[0], row[1]) if row else None

    def last_file(self) -> int:
        """The highest file number in use; 0 for none."""
        with self._index.read() as con:
            return con.execute("SELECT max(id) FROM files").fetchone()[0] or 0

    def counts(self, files: Iterable[int]) -> dict[int, int]:
        """How many chunks each of the files holds."""
        with self._index.read() as con:
            return {
                file: con.execute("SELECT count(*) FROM chunks WHERE file = ?", (file,)).fetchone()[0] for file in files
            }

    def live_bytes(self, file: int) -> int:
        """Bytes of a file that chunks take; the file must hold some."""
        with self._index.read() as con:
            return int(con.execute("SELECT sum(nbytes) FROM chunks WHERE file = ?", (file,)).fetchone()[0])

    # -- writing

    def insert(
        self,
        txn: Txn,
        places: Sequence[Place],
        checksums: Sequence[bytes],
        chunks: Sequence[tuple[int, ChunkMeta | None]],
    ) -> None:
        """Insert chunks; ``chunks`` has the number of tokens and what is known of each."""
        txn.con.executemany(
            f"INSERT INTO chunks ({', '.join(_INSERTED)}) VALUES ({', '.join('?' * len(_INSERTED))})",
            [
                (p.file, p.offset, p.nbytes, n_tokens, checksum, p.key, *meta_columns(meta))
                for p, checksum, (n_tokens, meta) in zip(places, checksums, chunks, strict=True)
            ],
        )

    def insert_file(self, txn: Txn, file: int, ctx: ContextId, data_key: int | None) -> None:
        txn.con.execute("INSERT INTO files (id, context, seal) VALUES (?, ?, ?)", (file, ctx, data_key))

    def update_places(self, txn: Txn, places: Sequence[Place], checksums: Sequence[bytes]) -> None:
        """Chunks were written again, elsewhere and with other bytes of the same length."""
        txn.con.executemany(
            "UPDATE chunks SET file = ?, offset = ?, checksum = ? WHERE key = ?",
            [(p.file, p.offset, checksum, p.key) for p, checksum in zip(places, checksums, strict=True)],
        )

    def move(self, txn: Txn, places: Sequence[Place], file: int, offsets: Sequence[int]) -> None:
        """The chunks at ``places`` were copied to ``offsets`` of ``file``."""
        txn.con.executemany(
            "UPDATE chunks SET file = ?, offset = ? WHERE file = ? AND offset = ?",
            [(file, offset, p.file, p.offset) for offset, p in zip(offsets, places, strict=True)],
        )

    def set_sensitivity(self, txn: Txn, sensitivities: Iterable[tuple[ChunkKey, ChunkSensitivity]]) -> None:
        """Keys that are not stored are ignored."""
        txn.con.executemany(
            "UPDATE chunks SET k_change = ?, v_change = ?, density = ?, weight = ?, measured_at = ? WHERE key = ?",
            [(*sensitivity, key) for key, sensitivity in sensitivities],
        )

    def set_meta(self, txn: Txn, metas: Iterable[tuple[ChunkKey, ChunkMeta | None]]) -> None:
        """Replace what is known of chunks."""
        txn.con.executemany(
            f"UPDATE chunks SET {', '.join(f'{column} = ?' for column in META)} WHERE key = ?",
            [(*meta_columns(meta), key) for key, meta in metas],
        )

    def delete(self, txn: Txn, places: Iterable[Place]) -> int:
        """Delete the chunks that are still at these places. Returns how many were."""
        done = txn.con.executemany(
            "DELETE FROM chunks WHERE file = ? AND offset = ? AND key = ?", [(p.file, p.offset, p.key) for p in places]
        )
        return done.rowcount

    def delete_files(self, txn: Txn, files: Iterable[int]) -> None:
        txn.con.executemany("DELETE FROM files WHERE id = ?", [(file,) for file in files])

    def delete_empty_file(self, txn: Txn, file: int) -> bool:
        """Delete the row of a file if it holds no chunks. Returns whether it did."""
        done = txn.con.execute(
            "DELETE FROM files WHERE id = ? AND NOT EXISTS (SELECT 1 FROM chunks WHERE file = ?)", (file,) * 2
        )
        return done.rowcount > 0

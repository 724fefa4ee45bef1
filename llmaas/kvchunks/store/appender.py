"""Appends chunks to payload files and has them indexed.

Law: bytes first, then the index row. If the row does not come, the bytes are removed again. One thread at a time:
``Chunks`` holds its lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from llmaas.kvchunks.store.chunk_table import ChunkTable
from llmaas.kvchunks.store.data_keys import DataKeys, encrypt_all
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.payload_files import PayloadFiles, checksum
from llmaas.kvchunks.store.rows import Place
from llmaas.records import ChunkKey, ContextId


class Appended(NamedTuple):
    """Chunks that are on disk and have no rows yet: the transaction for these, and each chunk's place and checksum."""

    txn: Txn
    places: list[Place]
    checksums: list[bytes]


class Appender:
    """Chooses the file that a context's next chunks go to, encrypts them if they are to be, and writes them."""

    def __init__(self, index: Index, table: ChunkTable, payload: PayloadFiles, keys: DataKeys) -> None:
        self._index, self._table, self._payload, self._keys = index, table, payload, keys
        # Above every number in the index or on disk: a number that is used again could show old bytes as new.
        self._next_file = 1 + max(table.last_file(), *payload.sizes(), 0)

    def new_file(self) -> int:
        """A file number that was never used."""
        self._next_file += 1
        return self._next_file - 1

    @contextmanager
    def append(self, ctx: ContextId, items: Sequence[tuple[ChunkKey, memoryview | bytes]]) -> Iterator[Appended]:
        """Write chunks to the end of the context's newest file; the block writes their rows."""
        data_key, key = self._keys.for_writing(ctx)
        views = encrypt_all(key, items)
        file, end = self._file_for(ctx, data_key)
        offset = self._payload.append(file, views, start=end)
        places, at = [], offset
        for (name, _), view in zip(items, views, strict=True):
            places.append(Place(name, file, at, len(view), data_key))
            at += len(view)
        try:
            with self._index.write(durable=False) as txn:
                if not end:
                    self._table.insert_file(txn, file, ctx, data_key)
                yield Appended(txn, places, [checksum(view) for view in views])
        except BaseException:
            self._payload.undo_append(file, offset)
            raise

    def _file_for(self, ctx: ContextId, data_key: int | None) -> tuple[int, int]:
        """The file for the context's next chunks, and where the index says that it ends (0: a new file)."""
        newest = self._table.newest_file(ctx, data_key)
        # A file that is missing or short gets no more bytes: rows that still name it would find others', or a hole.
        if newest and self._payload.size(newest[0]) >= newest[1]:
            return newest
        return self.new_file(), 0

"""Appends chunks to payload files and has them indexed.

Law: bytes first, then the index row. If the row does not come, the bytes are removed again. One thread at a time:
``Chunks`` holds its lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple

from llmaas.kvchunks.store.chunk_table import ChunkTable
from llmaas.kvchunks.store.cipher import OVERHEAD, CipherKey
from llmaas.kvchunks.store.data_keys import DataKeys, stored_size
from llmaas.kvchunks.store.index import Index, Txn
from llmaas.kvchunks.store.payload_files import PayloadFiles, checksum
from llmaas.kvchunks.store.rows import Place
from llmaas.records import ChunkKey, ContextId

_KEPT = 1 << 20
"""Bytes of memory for one encrypted chunk that are kept from one call to the next."""


class Appended(NamedTuple):
    """Chunks that are on disk and have no rows yet: the transaction for these, and each chunk's place and checksum."""

    txn: Txn
    places: list[Place]
    checksums: list[bytes]


class Appender:
    """Chooses the file that a context's next chunks go to, encrypts them if they are to be, and writes them."""

    def __init__(self, index: Index, table: ChunkTable, payload: PayloadFiles, keys: DataKeys) -> None:
        self._index, self._table, self._payload, self._keys = index, table, payload, keys
        self._memory = memoryview(b"")
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
        sizes, checksums = [stored_size(key, len(data)) for _, data in items], list[bytes]()
        file, end = self._file_for(ctx, data_key)
        offset = self._payload.append(file, self._stored(key, items, checksums), sum(sizes), start=end)
        starts = accumulate(sizes, initial=offset)
        places = [Place(name, file, at, n, data_key) for (name, _), at, n in zip(items, starts, sizes, strict=False)]
        try:
            with self._index.write(durable=False) as txn:
                if not end:
                    self._table.insert_file(txn, file, ctx, data_key)
                yield Appended(txn, places, checksums)
        except BaseException:
            self._payload.undo_append(file, offset)
            raise

    def _stored(
        self, key: CipherKey | None, items: Sequence[tuple[ChunkKey, memoryview | bytes]], checksums: list[bytes]
    ) -> Iterator[memoryview]:
        """What is written of each chunk, as long as it takes: the next one is encrypted to the same memory, which is
        warm then. New memory for each took longer than encrypting. ``checksums``: where theirs are put."""
        memory = self._memory
        for name, data in items:
            if key is not None and len(memory) < len(data) + OVERHEAD:
                memory = memoryview(bytearray(len(data) + OVERHEAD))
                if len(memory) <= _KEPT:
                    self._memory = memory
            view = memoryview(data) if key is None else key.encrypt_chunk(data, name, memory)
            checksums.append(checksum(view))
            yield view

    def _file_for(self, ctx: ContextId, data_key: int | None) -> tuple[int, int]:
        """The file for the context's next chunks, and where the index says that it ends (0: a new file)."""
        newest = self._table.newest_file(ctx, data_key)
        # A file that is missing or short gets no more bytes: rows that still name it would find others', or a hole.
        if newest and self._payload.size(newest[0]) >= newest[1]:
            return newest
        return self.new_file(), 0

"""Rewrites payload files that are mostly dead.

Law: a compacted file is synced before its rows name it, and the old file goes only after that commit, which is durable:
bytes that were long safe must not be at risk. One thread at a time: ``Chunks`` holds its lock.
"""

from __future__ import annotations

import logging

from llmaas.errors import MachineError
from llmaas.kvchunks.store.appender import Appender
from llmaas.kvchunks.store.chunk_table import ChunkTable
from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.payload_files import PayloadFiles

log = logging.getLogger(__name__)

_DEAD_ENOUGH = 1 << 20
"""Bytes. With less than this dead, a file is not worth rewriting."""


class Compactor:
    """Copies what is alive in a file to a new one."""

    def __init__(self, index: Index, table: ChunkTable, payload: PayloadFiles, appender: Appender) -> None:
        self._index, self._table, self._payload, self._appender = index, table, payload, appender

    def compact_if_worth(self, file: int) -> int:
        """Rewrite the file if over half of it, and over 1 MiB, is dead. Returns the bytes freed.

        Without room for the copy the file stays as it is.
        """
        live = self._table.live_bytes(file)
        size = self._payload.size(file)
        if size - live <= max(_DEAD_ENOUGH, live):
            return 0
        try:
            self._compact(file)
        except MachineError as error:
            log.warning("%s stays fragmented: %s", self._payload.path(file), error)
            return 0
        return size - live

    def _compact(self, old: int) -> None:
        ctx, data_key = self._table.owner(old)
        places = self._table.places_in(old)
        new = self._appender.new_file()
        offsets = self._payload.copy(old, new, places)
        try:
            with self._index.write(durable=True) as txn:
                self._table.insert_file(txn, new, ctx, data_key)
                self._table.move(txn, places, new, offsets)
                self._table.delete_files(txn, [old])
        except BaseException:
            self._payload.unlink(new)
            raise
        self._payload.unlink(old)

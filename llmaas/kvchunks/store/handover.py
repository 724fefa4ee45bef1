"""Hands the chunks that a context shares with others over to these, before its data key is deleted.

Law: after a handover a shared chunk is encrypted with the key of a context that still needs it, or it is missing and
recomputed when needed. One thread at a time: ``Chunks`` holds its lock.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from llmaas.errors import MachineError
from llmaas.kvchunks.store.appender import Appender
from llmaas.kvchunks.store.chunk_table import ChunkTable
from llmaas.kvchunks.store.data_keys import DataKeys
from llmaas.kvchunks.store.payload_files import PayloadFiles
from llmaas.kvchunks.store.rows import Place
from llmaas.records import ChunkKey, ContextId

log = logging.getLogger(__name__)

_AT_ONCE = 16
"""Chunks that are in memory at one time."""


class Handover:
    """Encrypts chunks again, each with the key of its heir."""

    def __init__(self, table: ChunkTable, payload: PayloadFiles, keys: DataKeys, appender: Appender) -> None:
        self._table, self._payload, self._keys, self._appender = table, payload, keys, appender

    def hand_over(self, ctx: ContextId, heirs: Mapping[ChunkKey, ContextId]) -> None:
        """``heirs`` names a context for each chunk that is shared. What fails is recomputed when needed."""
        of_ctx = self._keys.of(ctx)
        shared = [place for place in self._table.find(heirs) if place.data_key in of_ctx]
        try:
            for heir in {heirs[place.key] for place in shared}:
                inherited = [place for place in shared if heirs[place.key] == heir]
                for i in range(0, len(inherited), _AT_ONCE):
                    self._reencrypt(heir, inherited[i : i + _AT_ONCE])
        except MachineError as error:
            log.warning("chunks shared with a deleted context will be recomputed: %s", error)

    def _reencrypt(self, heir: ContextId, places: Sequence[Place]) -> None:
        read = [(p.key, self._keys.decrypt(p, view)) for p, view in self._payload.read(places) if view is not None]
        chunks = [(key, chunk) for key, chunk in read if chunk is not None]
        if chunks:
            with self._appender.append(heir, chunks) as done:
                self._table.update_places(done.txn, done.places, done.checksums)

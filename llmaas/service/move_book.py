"""What the store knows of moves of contexts between nodes.

Law: each change is durable before it is returned from.
"""

from __future__ import annotations

from llmaas.kvchunks.store.move_rows import MoveRow
from llmaas.service.parts import ServiceParts


class MoveBook:
    """For one event loop. Raises StoreFailed, DiskFull."""

    def __init__(self, parts: ServiceParts) -> None:
        self._thread, self._moves = parts.store_thread, parts.store.moves

    async def known(self) -> list[MoveRow]:
        return await self._thread.run("", self._moves.all)

    async def find(self, move: str) -> MoveRow | None:
        return await self._thread.run("", self._moves.find, move)

    async def settle(self, row: MoveRow) -> None:
        await self._thread.run("", self._moves.settle, row)

    async def put(self, row: MoveRow) -> None:
        await self._thread.run("", self._moves.put, row)

    async def forget(self, row: MoveRow) -> None:
        await self._thread.run("", self._moves.forget, row.move)

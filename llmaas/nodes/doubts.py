"""Moves of which it is not known whether the other node has the context: it is asked until it says.

Law: nobody uses such a context meanwhile. A node that is forgotten is not asked: what was to go to it stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from llmaas.errors import LlmaasError
from llmaas.kvchunks.store.move_rows import MoveRow
from llmaas.nodes.chunk_sender import ask_node
from llmaas.nodes.link import NodeClient
from llmaas.nodes.node_messages import MoveAsked, MoveSettled
from llmaas.nodes.pinned import PinnedNode, PinnedNodes
from llmaas.nodes.ports import Departures, LeavingContext

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
Finish = Callable[[NodeClient, LeavingContext], Awaitable[object]]
"""The other node has it: send what it lacks, and forget it here."""


class MoveDoubts:
    """``connect``: to a node; ``finish``: ends a move that the other node has taken. For one event loop."""

    def __init__(
        self,
        departures: Departures,
        nodes: PinnedNodes,
        connect: Callable[[PinnedNode], Awaitable[NodeClient]],
        finish: Finish,
    ) -> None:
        self._departures, self._nodes, self._connect, self._finish = departures, nodes, connect, finish
        self._rows: dict[str, MoveRow] = {}
        self._added = asyncio.Event()

    def add(self, row: MoveRow) -> None:
        self._rows[row.move] = row
        self._added.set()

    async def run(self) -> None:
        """Ask, again and again. Never returns."""
        wait = _FIRST_WAIT_S
        while True:
            self._added.clear()
            for row in list(self._rows.values()):
                if await self._is_clear(row):
                    del self._rows[row.move]
                    wait = _FIRST_WAIT_S
            if not self._rows:
                await self._added.wait()
                wait = _FIRST_WAIT_S
                continue
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._added.wait(), wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    async def _is_clear(self, row: MoveRow) -> bool:
        try:
            await self._clear(row)
        except LlmaasError as error:
            log.warning("what became of the move of context %s is not known yet: %s", row.context, error.message)
        except Exception:
            log.exception("what became of the move of context %s is not known", row.context)
        else:
            return True
        return False

    async def _clear(self, row: MoveRow) -> None:
        """Raises LlmaasError if the other node cannot be asked."""
        pinned = next((node for node in self._nodes.read().values() if node.fingerprint == row.node), None)
        if pinned is None:
            log.warning("context %s stays here: the node that it was to go to is forgotten", row.context)
            await self._stays(row)
            return
        client = await self._connect(pinned)
        try:
            taken = bool((await ask_node(client, MoveAsked(row.move))).get("taken"))
            async with self._departures.departure_in_doubt(row) as leaving:
                if leaving is None:
                    await ask_node(client, MoveSettled(row.move))
                    await self._departures.forget(row)
                elif taken:
                    log.info("context %s is at the node %s", row.context, pinned.name)
                    await self._finish(client, leaving)
                else:
                    log.info("context %s stays here: the node %s has not taken it", row.context, pinned.name)
                    await leaving.stays()
        finally:
            await client.close()

    async def _stays(self, row: MoveRow) -> None:
        async with self._departures.departure_in_doubt(row) as leaving:
            if leaving is None:
                await self._departures.forget(row)
            else:
                await leaving.stays()

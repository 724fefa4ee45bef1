"""The marks that nodes have told the controller, in the index of its table.

Law: for one event loop. Taking many gives others their turn in between; a node whose marks cannot be believed has none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from llmaas.errors import BadRequest
from llmaas.nodes.cluster.mark_book import MarkChange
from llmaas.nodes.cluster.states import NodeState, PlaceAsked
from llmaas.policies.context_marks import unpacked
from llmaas.policies.node_table import NodeTable

log = logging.getLogger(__name__)

_AT_ONCE = 2048
"""Marks that are taken in one go, some 5 ms."""


class TakenMarks:
    def __init__(self, table: NodeTable) -> None:
        self._table = table
        self._serials: dict[str, int] = {}
        self._taking = asyncio.Lock()

    def serial(self, node: str) -> int:
        """The number of the marks that are known of a node; -1: none are."""
        return self._serials.get(node, -1)

    def forget(self, node: str) -> None:
        self._table.marks.forget(node)
        self._serials.pop(node, None)

    async def take(self, node: str, told: MarkChange) -> None:
        async with self._taking:
            if told.since is not None and told.since != self._serials.get(node):
                return  # it was told to somebody who knew other ones; what is known now is asked about again
            self._serials.pop(node, None)
            try:
                await self._take(node, told)
            except ValueError as error:
                log.warning("what the node %s says of its marks is not believed: %s", node, error)
                self.forget(node)

    async def _take(self, node: str, told: MarkChange) -> None:
        new, gone = told.new, told.gone
        if told.since is None:
            self._table.marks.forget(node)
        self._table.holds(node, removed=gone)
        for first in range(0, len(new), _AT_ONCE):
            self._table.holds(node, new[first : first + _AT_ONCE])
            await asyncio.sleep(0)
        if node in self._table.nodes:
            self._serials[node] = told.serial
        else:  # it has left meanwhile
            self._table.marks.forget(node)

    def held(self, asked: PlaceAsked, live: Mapping[str, NodeState]) -> dict[str, int]:
        """Which nodes hold how many of the first tokens of what a call brings. Raises BadRequest."""
        held = {asked.near: asked.n_near} if asked.near in live and asked.n_near else {}
        for chain in asked.chains:
            try:
                found = self._table.marks.held(unpacked(chain.marks))
            except ValueError as error:
                raise BadRequest(f"field 'chains': {error}") from None
            for node, n_tokens in found.items():
                if node in live and live[node].kin == chain.kin:
                    held[node] = max(held.get(node, 0), n_tokens)
        return {node: min(n_tokens, asked.n_new) for node, n_tokens in held.items()}

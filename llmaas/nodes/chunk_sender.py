"""Sends the chunks of a context to the node that has taken it.

Law: each chunk is sent once, as it is coded. Some pages are on the way ahead of the replies: the link is in use while
the other node stores what has come. Whatever fails, no reply is left on the way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from llmaas.api.record_maps import from_map
from llmaas.api.transfer_records import ExportedChunks, ImportedChunks
from llmaas.clock import Clock
from llmaas.errors import LlmaasError, MachineError
from llmaas.nodes.link import NodeClient
from llmaas.nodes.node_messages import MovedChunks, NodeRequest, node_frame
from llmaas.nodes.ports import SentContext
from llmaas.policies.migration import LinkCosts
from llmaas.records import CHUNK_TOKENS

CHUNK_BYTES = 1 << 19
"""Of a page."""
_AHEAD = 2
"""Pages of chunks that may be on the way, sent or not answered yet."""


async def ask_node(client: NodeClient, request: NodeRequest) -> dict[str, Any]:
    """The reply. Raises what the node says is wrong, and NodeUnreachable."""
    await post_to(client, request)
    return await client.reply()


async def post_to(client: NodeClient, request: NodeRequest) -> None:
    """Without waiting for the reply, which ``client.reply`` gives."""
    frame = node_frame(request)
    await client.post(frame.pop("op"), **frame)


def number_in(node: str, said: dict[str, Any], field: str) -> float:
    """A number of a reply, at least 0; 0 if it is missing. Raises MachineError.

    >>> number_in("desk", {"n_cells": 5}, "n_cells"), number_in("desk", {}, "n_cells")
    (5.0, 0.0)
    """
    found = said.get(field) or 0
    if not isinstance(found, int | float) or not 0 <= found < math.inf:
        raise MachineError(f"the node {node} speaks another language: field {field!r} is no number of 0 or more")
    return float(found)


class LinkWatch:
    """Learns what pages take on the way: from one reply to the next while some are on the way, and the link in use."""

    def __init__(self, costs: LinkCosts, clock: Clock) -> None:
        self._costs, self._clock = costs, clock
        self._on_way = deque[int]()
        self._since = 0.0

    def posted(self, nbytes: int) -> None:
        if not self._on_way:
            self._since = self._clock.now()
        self._on_way.append(nbytes)

    @property
    def on_way_s(self) -> float:
        """What is on the way is expected to take."""
        return self._costs.send_s(sum(self._on_way), len(self._on_way))

    def replied(self) -> None:
        before, self._since = self._since, self._clock.now()
        self._costs.sent(self._on_way.popleft(), self._since - before)


class ChunkSender:
    """``n_chunks`` were taken there; ``n_bytes`` were sent in ``n_pages``, of ``n_begun`` chunks."""

    def __init__(self, client: NodeClient, leaving: SentContext, move: str, watch: LinkWatch | None = None) -> None:
        self._client, self._leaving, self._move, self._watch = client, leaving, move, watch
        self._n_asked = self.n_chunks = self.n_bytes = self.n_pages = self.n_begun = 0
        self.n_cells = 0
        """Tokens that are in CELLS there, or are being computed."""
        self.computes = False
        """Whether the other node is to compute what is missing meanwhile."""

    async def send(self) -> None:
        """Those that are stored here and missing there, and the last one, which may be cut. Whatever is raised, no
        reply is left on the way."""
        about, missing = await self._missing()
        if missing is not None:
            n_full = about.n_kv // CHUNK_TOKENS
            indices = [i for i in range(-(-about.n_kv // CHUNK_TOKENS)) if i in missing or i >= n_full]
            await self._send(about, indices, lambda _: True)

    async def send_ahead(self, more: Callable[[Sequence[int]], bool], first: int = 0) -> None:
        """Full ones from ``first`` on that are stored here and missing there, the last ones first, as long as ``more``
        says so of those that are left: chunks in front of the others, which the other node can compute. Else as
        ``send``."""
        about, missing = await self._missing()
        if missing is not None:
            indices = [i for i in reversed(range(first, about.n_kv // CHUNK_TOKENS)) if i in missing]
            await self._send(about, indices, more)

    async def _missing(self) -> tuple[ExportedChunks, frozenset[int] | None]:
        """What there is, and which chunks are missing there; None if chunks of this model cannot be used."""
        about = await self._leaving.chunks((), 0, CHUNK_BYTES)
        asked = from_map(ImportedChunks, await ask_node(self._client, MovedChunks(self._move, about.root, about.kv)))
        return about, frozenset(asked.missing) if asked.usable else None

    async def _send(self, about: ExportedChunks, indices: Sequence[int], more: Callable[[Sequence[int]], bool]) -> None:
        try:
            await self._pages(about, indices, more)
            await self._replies(0)
        finally:
            while self._n_asked:
                with suppress(LlmaasError):
                    await self._replies(self._n_asked - 1)

    async def _pages(
        self, about: ExportedChunks, indices: Sequence[int], more: Callable[[Sequence[int]], bool]
    ) -> None:
        at, offset = 0, 0
        while at < len(indices):
            await self._replies(_AHEAD - 1)
            if not (offset or more(indices[at:])):
                return
            page = await self._leaving.chunks(tuple(indices[at : at + 64]), offset, CHUNK_BYTES)
            if not (page.n_done or page.pieces):
                return
            if page.pieces:
                await post_to(self._client, MovedChunks(self._move, about.root, about.kv, page.pieces, self.computes))
                self._n_asked += 1
                n_bytes = sum(len(piece.data) for piece in page.pieces)
                self.n_bytes += n_bytes
                self.n_pages += 1
                self.n_begun += sum(not piece.offset for piece in page.pieces)
                if self._watch is not None:
                    self._watch.posted(n_bytes)
            at, offset = at + page.n_done, page.offset

    async def _replies(self, n_left: int) -> None:
        """Take replies until so many are left on the way."""
        while self._n_asked > n_left:
            self._n_asked -= 1
            reply = await self._client.reply()
            if self._watch is not None:
                self._watch.replied()
            self.n_chunks += from_map(ImportedChunks, reply).taken
            self.n_cells = int(number_in(self._client.name, reply, "n_cells"))

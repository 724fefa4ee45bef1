"""Sends the chunks of a context to the node that has taken it.

Law: each chunk is sent once, as it is coded. Some pages are on the way ahead of the replies: the link is in use while
the other node stores what has come. Whatever fails, no reply is left on the way.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from llmaas.api.record_maps import from_map
from llmaas.api.transfer_records import ExportedChunks, ImportedChunks
from llmaas.errors import LlmaasError
from llmaas.nodes.link import NodeClient
from llmaas.nodes.node_messages import MovedChunks, NodeRequest, node_frame
from llmaas.nodes.ports import SentContext
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


class ChunkSender:
    """``n_chunks`` were taken there; ``n_bytes`` were sent."""

    def __init__(self, client: NodeClient, leaving: SentContext, move: str) -> None:
        self._client, self._leaving, self._move = client, leaving, move
        self._n_asked = self.n_chunks = self.n_bytes = 0

    async def send(self, *, full_only: bool = False) -> None:
        """Those that are stored here and missing there, and the last one, which may be cut, unless ``full_only``.
        Whatever is raised, no reply is left on the way."""
        about = await self._leaving.chunks((), 0, CHUNK_BYTES)
        asked = from_map(ImportedChunks, await ask_node(self._client, MovedChunks(self._move, about.root, about.kv)))
        if not asked.usable:
            return
        missing, n_full = set(asked.missing), about.n_kv // CHUNK_TOKENS
        n_chunks = n_full if full_only else -(-about.n_kv // CHUNK_TOKENS)
        indices = tuple(i for i in range(n_chunks) if i in missing or i >= n_full)
        try:
            await self._pages(about, indices)
            await self._replies(0)
        finally:
            while self._n_asked:
                with suppress(LlmaasError):
                    await self._replies(self._n_asked - 1)

    async def _pages(self, about: ExportedChunks, indices: tuple[int, ...]) -> None:
        at, offset = 0, 0
        while at < len(indices):
            page = await self._leaving.chunks(indices[at : at + 64], offset, CHUNK_BYTES)
            if not (page.n_done or page.pieces):
                return
            if page.pieces:
                await self._replies(_AHEAD - 1)
                await post_to(self._client, MovedChunks(self._move, about.root, about.kv, page.pieces))
                self._n_asked += 1
                self.n_bytes += sum(len(piece.data) for piece in page.pieces)
            at, offset = at + page.n_done, page.offset

    async def _replies(self, n_left: int) -> None:
        """Take replies until so many are left on the way."""
        while self._n_asked > n_left:
            self._n_asked -= 1
            self.n_chunks += from_map(ImportedChunks, await self._client.reply()).taken

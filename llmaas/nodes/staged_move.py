"""A context that goes to another node while it is answered: all but its newest tokens, before the answer stops.

Law: nothing is the other node's by that, and nothing changes here. Chunks that are coded go once, the last ones first:
they do not change any more. Where the link is slow, the other node computes the first ones meanwhile, until both meet;
where it turns out to have no time for that, chunks are sent after all. Then rounds bring the tokens that were drawn
meanwhile. Rounds end when one has not made the pause shorter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from llmaas.clock import Clock
from llmaas.errors import LlmaasError, NodeUnreachable
from llmaas.kvchunks.store.tokens import n_common, unpack
from llmaas.nodes.announcing import announce
from llmaas.nodes.chunk_sender import ChunkSender, LinkWatch, ask_node, number_in
from llmaas.nodes.link import NodeClient
from llmaas.nodes.node_messages import Grow, StageContext, Take
from llmaas.nodes.ports import GrowingContext
from llmaas.policies.linear_cost import LinearCost
from llmaas.policies.migration import LinkCosts, Next, computes_meanwhile, next_step, sends_more
from llmaas.records import CHUNK_TOKENS, TOKEN_BYTES, ContextSpan, ExportedContext

log = logging.getLogger(__name__)


def guessed_costs() -> LinkCosts:
    """Before anything was seen of a node."""
    return LinkCosts(LinearCost(1e-3, 1e-8))


class StagedMove:
    """``n_chunks`` were taken there; ``n_bytes`` were sent."""

    def __init__(self, client: NodeClient, context: GrowingContext, costs: LinkCosts, clock: Clock) -> None:
        self._client, self._context, self._costs, self._clock = client, context, costs, clock
        self._watch = LinkWatch(costs, clock)
        self._offered, self._n_offered = context.exported.spans, context.exported.n_tokens
        self._grown = bytearray()
        self._n_there = 0
        """Tokens that were in CELLS there after the last round."""
        self._computes = False
        """Whether chunks are left that the other node is to compute."""
        self._ahead = False
        """Whether it has been computing them since: the next round waits for that, and brings nothing more."""
        self.move, self.n_chunks, self.n_bytes, self.n_rounds = "", 0, 0, 0

    async def bring(self, label: str, name: str, way: str) -> bool:
        """Whether it waits there, with all but the tokens that have been drawn since the last round. Raises
        NodeUnreachable: then the context need not be stopped."""
        client = self._client
        try:
            self.move = await announce(client, self._context, label, name)
            said = await ask_node(client, StageContext(self.move))
            sender = ChunkSender(client, self._context, self.move, self._watch)
            if way != "tokens":
                compute_s = math.inf if way == "chunks" else number_in(client.name, said, "compute_s")
                await self._chunks(sender, compute_s / max(1, self._n_offered))
            await self._rounds(sender)
            self.n_chunks, self.n_bytes = sender.n_chunks, sender.n_bytes
        except NodeUnreachable:
            raise
        except LlmaasError as error:
            log.info("nothing goes to the node %s ahead: %s", client.name, error.message)
            return False
        return True

    async def _chunks(self, sender: ChunkSender, token_s: float) -> None:
        """Send those that are coded and not there, the last ones first, until they meet those that the other node
        computes meanwhile, in ``token_s`` for each token."""
        self._computes = False

        def more(left: Sequence[int]) -> bool:
            if not sender.n_begun:
                return True  # to see how large they are, and how fast they go
            chunk_s = self._costs.send_s(sender.n_bytes, sender.n_pages) / sender.n_begun
            compute_s = token_s * CHUNK_TOKENS * sum((i + 1) * CHUNK_TOKENS > sender.n_cells for i in left)
            sender.computes = sender.computes or computes_meanwhile(chunk_s * len(left), compute_s)
            self._computes = sender.computes and not sends_more(self._watch.on_way_s + chunk_s, compute_s)
            return not self._computes

        await sender.send_ahead(more, self._n_there // CHUNK_TOKENS)
        self._ahead = sender.computes

    async def _rounds(self, sender: ChunkSender) -> None:
        left = list[int]()
        while True:
            before, since = self._n_there, self._clock.now()
            await self._round()
            if self._computes and self._n_there < self._n_sent:  # it takes long: longer than the link would?
                n, seconds = self._n_there - before, self._clock.now() - since
                await self._chunks(sender, seconds / n if n > 0 else math.inf)
            if before < self._n_there < self._n_sent:
                continue  # there was much to compute, and there is more
            left.append(len(self._new()) // TOKEN_BYTES)
            if next_step(left) is Next.HAND_OVER:
                return

    async def _round(self) -> None:
        new = b"" if self._ahead else self._new()
        self._ahead = False
        said = await ask_node(self._client, Grow(self.move, new))
        self._n_there = int(number_in(self._client.name, said, "n_cells"))
        self._grown += new
        self.n_rounds += 1

    @property
    def _n_sent(self) -> int:
        return self._n_offered + len(self._grown) // TOKEN_BYTES

    def _new(self) -> bytes:
        return self._context.tokens_from(self._n_sent)

    def take(self, final: ExportedContext) -> Take | None:
        """What the other node is asked for when the answer has stopped: with the tokens that it lacks. None if what
        waits there is not what the context begins with."""
        n = len(self._offered)
        if final.spans[:n] != self._offered:
            return None
        rest = final.spans[n:]
        n_known = n_common(unpack(bytes(self._grown)), unpack(rest[0].tokens)) if rest else 0
        return Take(self.move, _without(rest, n_known), n_known)


def _without(spans: tuple[ContextSpan, ...], n_tokens: int) -> tuple[ContextSpan, ...]:
    if not n_tokens:
        return spans
    return (replace(spans[0], tokens=spans[0].tokens[TOKEN_BYTES * n_tokens :]), *spans[1:])

"""Says to another node what is to come: a context, with all its tokens.

Law: nothing is the other node's by that, and nothing changes here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from llmaas.nodes.chunk_sender import CHUNK_BYTES, ask_node
from llmaas.nodes.link import NodeClient
from llmaas.nodes.node_messages import Offer, Spans
from llmaas.nodes.ports import SentContext
from llmaas.records import ContextSpan

_SPAN_BYTES = 1 << 20
_SPANS = 1000
"""Of one frame."""


async def announce(client: NodeClient, context: SentContext, label: str, name: str) -> str:
    """Returns the name of the move. Raises what the node says is wrong, and NodeUnreachable."""
    exported, about, move = context.exported, await context.chunks((), 0, CHUNK_BYTES), secrets.token_hex(16)
    kinds = exported.model, exported.vocab, len(exported.spans), about.root, about.kv
    await ask_node(client, Offer(move, label, name, *kinds, context.adapter, context.ttl))
    for batch in _batches(exported.spans):
        await ask_node(client, Spans(move, batch))
    return move


def _batches(spans: tuple[ContextSpan, ...]) -> Iterator[tuple[ContextSpan, ...]]:
    batch, n_bytes = list[ContextSpan](), 0
    for span in spans:
        batch.append(span)
        n_bytes += len(span.tokens) + 4 * len(span.text or "")
        if n_bytes >= _SPAN_BYTES or len(batch) >= _SPANS:
            yield tuple(batch)
            batch, n_bytes = [], 0
    if batch:
        yield tuple(batch)

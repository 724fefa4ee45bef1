"""By which chunks a conversation that a client brings would be found, so that it goes where its beginning is held.

Law: one node reads the text, as the client's app, and nothing of it goes through the cluster but hashes. Where that
cannot be had, or would take long, the call is placed without.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from llmaas.api.mark_messages import MOST_ROOTS, FoundMarks
from llmaas.api.record_maps import from_map, to_map
from llmaas.errors import BadRequest, LlmaasError
from llmaas.nodes.cluster.controller import meant_model
from llmaas.nodes.cluster.node_connection import NodeConnection
from llmaas.nodes.cluster.states import Kin, NodeSummary, PlaceAsked, PrefixChain
from llmaas.records import CHUNK_TOKENS, Message

log = logging.getLogger(__name__)

_SOON_S = 2.0
"""A node that has not read the text by then is not waited for."""

Connect = Callable[[str], Awaitable[NodeConnection]]


async def with_chains(
    asked: PlaceAsked,
    messages: Sequence[Message],
    nodes: Sequence[NodeSummary],
    connect: Connect,
    *,
    answer: bool,
) -> PlaceAsked:
    """The question with what is to be known of its text, as far as a node says it."""
    able = _able(asked, nodes)
    kins = list(dict.fromkeys(node.kin for node in able if node.n_marks))[:MOST_ROOTS]
    if len(able) < 2 or not kins or asked.n_new < CHUNK_TOKENS:
        return asked
    try:
        found = await asyncio.wait_for(
            _asked(connect, _reader(asked, able), asked.app, messages, kins, answer), _SOON_S
        )
        chains = tuple(PrefixChain(kin, chain) for kin, chain in zip(kins, found.chains, strict=True))
    except (LlmaasError, ValueError, asyncio.TimeoutError) as error:
        log.debug("a call is placed without what its text would be found by: %s", error)
        return asked
    return replace(asked, n_new=found.n_tokens, n_near=min(asked.n_near, found.n_tokens), chains=chains)


def _able(asked: PlaceAsked, nodes: Sequence[NodeSummary]) -> list[NodeSummary]:
    """Nodes that may serve it."""
    serving = [node for node in nodes if node.serving]
    try:
        model = meant_model(asked.model, [node.model for node in serving]) if serving else ""
    except LlmaasError:  # whoever places it says so
        return []
    return [node for node in serving if node.model == model]


def _reader(asked: PlaceAsked, able: Sequence[NodeSummary]) -> str:
    """The node that reads the text: of those whose model is in memory the one that knows the conversation, or else one
    with the shortest way and the least to do."""
    ready = [node for node in able if node.in_memory] or able
    best = min(ready, key=lambda node: (node.place.name != asked.near, node.place.door is not None, node.n_active))
    return best.place.name


async def _asked(
    connect: Connect, node: str, app: str, messages: Sequence[Message], kins: Sequence[Kin], answer: bool
) -> FoundMarks:
    """Raises LlmaasError."""
    frame = {
        "op": "marks_of",
        "messages": [to_map(message) for message in messages],
        "roots": [kin.root(app) for kin in kins],
        "answer": answer,
    }
    reply = await (await connect(node)).ask(frame)
    if reply.get("type") != "done":
        raise BadRequest(f"the node {node} does not say it: {reply.get('message')}")
    return from_map(FoundMarks, reply.get("result"))

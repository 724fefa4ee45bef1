"""What an agent reads of its daemon: models, contexts, calls, and marks of the chunks that it has.

Law: reads only. Contexts and marks are listed again when something has happened in the daemon, and no more often than
a tenth of the time allows: a daemon with many is not kept busy by being looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmaas.api.async_client import AsyncClient
from llmaas.clock import Clock
from llmaas.errors import BadRequest, Busy
from llmaas.frozen import frozen
from llmaas.nodes.cluster.model_state import ModelState, weights_state
from llmaas.nodes.cluster.speed import NodeSpeed
from llmaas.nodes.cluster.states import MOST_CONTEXTS, HeldContext, held_context
from llmaas.policies.context_marks import ContextMarks
from llmaas.records import RequestInfo

_GUESSED_TOKEN_BYTES = 6300.0
"""Of a token in coded chunks, before any were seen: those of a model of 135M parameters at 4 bits."""
_MOST_ANSWERING = 16
_LOOK_S = 10.0
"""Contexts are listed after so long even if nothing seems to have happened."""
_REST = 10
"""Times as long as listing them took, until they are listed again."""


@frozen
class DaemonFacts:
    """At one moment. ``serial`` grows when ``contexts`` are other ones; ``mark``: what has happened by then."""

    model: ModelState
    n_active: int
    n_waiting: int
    n_contexts: int
    contexts: tuple[HeldContext, ...]
    serial: int
    token_bytes: float
    user: str = ""
    """Number of the daemon's user."""
    fingerprint: str = ""
    """Of the model; "" of a daemon that tells no marks."""
    marks: frozenset[int] = frozenset()
    answering: tuple[tuple[str, str, int], ...] = ()
    """App, name and tokens of contexts that give answers now; some of them."""
    mark: tuple[object, ...] = ()
    listed_at: float = 0.0
    listing_s: float = 0.0


async def read_facts(
    client: AsyncClient,
    speed: NodeSpeed,
    before: DaemonFacts | None,
    clock: Clock,
    *,
    model: ModelState | None = None,
    fresh: bool = False,
) -> DaemonFacts:
    """What holds now; ``speed`` learns from it. ``before``: what was read last. ``client``: the operator's. ``model``:
    as a daemon of several models has told; None: of one, see ``stats``. ``fresh``: list contexts in any case. Raises
    LlmaasError."""
    now, stats = clock.now(), await client.stats()
    token_bytes = before.token_bytes if before is not None else _GUESSED_TOKEN_BYTES
    calls = await client.requests(everyone=True, after=speed.last)
    speed.observe(calls, token_bytes)
    requests = _map(stats, "requests")
    model = model or weights_state(_served(client), _map(stats, "weights"))
    mark = _mark(stats)
    listed = before or nothing_known(model)
    contexts, serial, listed_at, listing_s = listed.contexts, listed.serial, listed.listed_at, listed.listing_s
    fingerprint, marks = listed.fingerprint, listed.marks
    age = now - listed_at
    if fresh or age >= _LOOK_S or ((before is None or mark != before.mark) and age >= _REST * listing_s):
        begun = clock.now()
        found = await _contexts(client)
        fingerprint, marks = await _marks(client, listed)
        if found != contexts:
            contexts, serial = found, serial + 1
        listed_at, listing_s = now, clock.now() - begun
    elif before is not None:
        mark = before.mark  # what has happened since is still to be looked at
    return DaemonFacts(
        model=model,
        n_active=_number(requests, "active"),
        n_waiting=_number(requests, "waiting"),
        n_contexts=_number(stats, "contexts"),
        contexts=contexts,
        serial=serial,
        token_bytes=token_bytes,
        user=_user(client),
        fingerprint=fingerprint,
        marks=marks,
        answering=_answering(calls, contexts),
        mark=mark,
        listed_at=listed_at,
        listing_s=listing_s,
    )


def nothing_known(model: ModelState) -> DaemonFacts:
    """Of a daemon that has not been asked yet."""
    return DaemonFacts(model, 0, 0, 0, (), 0, _GUESSED_TOKEN_BYTES, listed_at=float("-inf"))


def _served(client: AsyncClient) -> str:
    server = client.server
    return str(server.get("served_as") or server.get("model_file") or server.get("model") or "")


def _user(client: AsyncClient) -> str:
    return str(client.server.get("app") or "").partition("/")[0]


async def _marks(client: AsyncClient, before: DaemonFacts) -> tuple[str, frozenset[int]]:
    """The model's fingerprint, and the marks; nothing of a daemon that does not tell them, and what was known of one
    that has no time for it now: it serves all the same."""
    try:
        listed = await client.list_marks()
        return listed.fingerprint, ContextMarks.from_bytes(listed.marks).marks
    except BadRequest:  # an older one, which has no such operation
        return "", frozenset()
    except (Busy, ValueError):
        return before.fingerprint, before.marks


async def _contexts(client: AsyncClient) -> tuple[HeldContext, ...]:
    """Those of the daemon's own user, the last used first."""
    user = _user(client)
    infos = [info for info in await client.contexts(everyone=True) if info.app.partition("/")[0] == user]
    return tuple(held_context(info) for info in infos[:MOST_CONTEXTS])


def _answering(calls: Sequence[RequestInfo], contexts: Sequence[HeldContext]) -> tuple[tuple[str, str, int], ...]:
    by_id = {held.id: held for held in contexts if not held.anonymous}
    running = [call for call in calls if call.may_move and call.context in by_id]
    return tuple(
        (by_id[call.context].app, by_id[call.context].name, by_id[call.context].n_tokens + call.n_generated)
        for call in running[:_MOST_ANSWERING]
    )


def _mark(stats: Mapping[str, Any]) -> tuple[object, ...]:
    requests, counts = _map(stats, "requests"), _map(stats, "counts")
    moved = tuple(counts.get(name) for name in ("chunks_saved", "chunks_written", "chunks_evicted"))
    return stats.get("contexts"), stats.get("text_bytes"), requests.get("total"), requests.get("active"), *moved


def _map(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _number(values: Mapping[str, Any], name: str) -> int:
    found = values.get(name)
    return found if type(found) is int and found >= 0 else 0

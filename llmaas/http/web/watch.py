"""``/llmaas/state`` and ``/llmaas/contexts/NAME``: what an app may see of its contexts and calls, for the web page and
for clients that speak HTTP; they make and delete contexts there, too.

Law: an app sees what is its own, and of the others no more than how full the tiers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from llmaas.http.call import HttpCall
from llmaas.http.edge import Edge
from llmaas.http.errors import HttpError
from llmaas.records import ContextDetail, ContextInfo, RequestInfo

MOST_CONTEXTS, MOST_REQUESTS = 100, 12
"""The ones used last, and the last calls of them; the rest are counted."""
PREFIX = "/llmaas/contexts/"


class Used(msgspec.Struct):
    """How full a tier is."""

    used: int
    most: int | None
    """None if there is no limit."""


class Tiers(msgspec.Struct):
    cells: Used
    """Tokens; pool and disk are bytes."""
    pool: Used
    disk: Used


class State(msgspec.Struct):
    """The app's contexts, last used first, and its calls, latest first."""

    model: str
    memory: Tiers
    contexts: list[ContextInfo]
    more: int
    """Contexts that are not listed."""
    requests: list[RequestInfo]


class Deleted(msgspec.Struct):
    id: str
    deleted: bool = True


async def state(edge: Edge, call: HttpCall) -> None:
    async with edge.daemon(call) as (client, facts):
        stats, contexts = await client.stats(), await client.contexts()
        requests = await client.requests(last=MOST_REQUESTS)
    contexts.sort(key=lambda context: -context.last_used)
    shown = contexts[:MOST_CONTEXTS]
    await call.reply_json(State(facts.id, _memory(stats), shown, len(contexts) - len(shown), requests[::-1]))


async def show_context(edge: Edge, call: HttpCall) -> None:
    async with edge.daemon(call) as (client, _):
        detail: ContextDetail = await client.show(_name(call))
    await call.reply_json(detail)


class NewContext(msgspec.Struct, forbid_unknown_fields=True):
    """What a context is made with, if there is none of the name."""

    system: str | None = None
    adapter: str = ""
    ttl: float | None = None
    """It goes when it has not been used for so many seconds; None: it stays."""


async def create_context(edge: Edge, call: HttpCall) -> None:
    name, new = _name(call), await call.read(NewContext)
    async with edge.daemon(call) as (client, _):
        context = await client.context(name, system=new.system, adapter=new.adapter, ttl=new.ttl)
    await call.reply_json(context.info)


async def delete_context(edge: Edge, call: HttpCall) -> None:
    name = _name(call)
    async with edge.daemon(call) as (client, _):
        await client.delete(name)
    await call.reply_json(Deleted(name))


def _name(call: HttpCall) -> str:
    name = call.path.removeprefix(PREFIX)
    if not name:
        raise HttpError(404, "there is no context without a name. /llmaas/state lists the app's.")
    return name


def _memory(stats: Mapping[str, Any]) -> Tiers:
    cells, pool, disk = stats.get("cells", {}), stats.get("pool_bytes", {}), stats.get("disk_bytes", {})
    return Tiers(
        Used(cells.get("used", 0), _limit(cells.get("total"))),
        Used(pool.get("used", 0), _limit(pool.get("budget"))),
        Used(disk.get("chunks", 0), _limit(disk.get("quota"))),
    )


def _limit(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None

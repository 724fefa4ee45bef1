"""Whether limits of throughput are kept: tokens per second that were set, and that were seen.

The service in this process, calls that would all be faster without a limit (``unlimited_tps`` says how fast):

* request: one call with a rate in its terms;
* app: two apps with a limit each, answering at once;
* service: one limit for all, four clients of four apps.

Seen is the rate from the first to the last token within the time measured, which begins two seconds after the first
token, so that what a limit lets through at once at its begin is not in it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from bench.lib.arrivals import rate, steady_rate
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import Answer, Inside, serving
from bench.lib.engine import engine
from bench.lib.stats import sig
from llmaas.calls import DEFAULT_TERMS, Terms
from llmaas.kvchunks.store.store import Store
from llmaas.records import AppId
from llmaas.service.service import Service

APPS = tuple(AppId(f"0/bench{i}") for i in range(4))
_SETTLING = 2.0
_OF_UNLIMITED = {"request": (0.4,), "app": (0.15, 0.3), "service": (0.4,)}
"""Limits, as parts of what one client has without: so that they bind on any machine."""
_LONG = 4096
"""Tokens that no answer reaches in its time, even without a limit."""


async def hear(
    service: Service, apps: Sequence[AppId], seconds: float, terms: Terms = DEFAULT_TERMS
) -> tuple[list[list[float]], float, float]:
    """Answers of the apps at once: arrivals, and the begin and end of the time to look at."""
    doors = [Inside(service, app) for app in apps]
    contexts = [await door.create() for door in doors]
    answers: list[Answer] = [
        door.answer(context, f"Client {i} counts: one, two,", _LONG // len(apps), terms)
        for i, (door, context) in enumerate(zip(doors, contexts, strict=True))
    ]
    while not all(answer.arrivals for answer in answers):
        await asyncio.sleep(0.01)
    begin = perf_counter() + _SETTLING
    await asyncio.sleep(_SETTLING + seconds)
    end = perf_counter()
    for answer in answers:
        await answer.cancel()
    for door, context in zip(doors, contexts, strict=True):
        await door.delete(context)
    return [answer.arrivals for answer in answers], begin, end


def row(kind: str, limit: float, seen: float) -> dict[str, Any]:
    say(f"{kind:8} {limit:7.2f} tokens/s set, {seen:7.2f} seen")
    return {"kind": kind, "limit_tps": limit, "seen_tps": sig(seen), "seen_over_limit": sig(seen / limit)}


async def measure_limits(service: Service, seconds: float) -> tuple[float, list[dict[str, Any]]]:
    answers, begin, end = await hear(service, APPS[:1], 3.0)
    unlimited = steady_rate(answers[0], begin, end)
    limits = {kind: [sig(part * unlimited) for part in parts] for kind, parts in _OF_UNLIMITED.items()}
    rows = []
    (limit,) = limits["request"]
    answers, begin, end = await hear(service, APPS[:1], seconds, Terms(rate=limit))
    rows.append(row("request", limit, steady_rate(answers[0], begin, end)))
    for app, limit in zip(APPS, limits["app"], strict=False):
        service.limit(app, limit)
    answers, begin, end = await hear(service, APPS[:2], seconds)
    for app, limit, arrivals in zip(APPS, limits["app"], answers, strict=False):
        rows.append(row("app", limit, steady_rate(arrivals, begin, end)))
        service.limit(app, None)
    (limit,) = limits["service"]
    service.limit(None, limit)
    answers, begin, end = await hear(service, APPS, seconds)
    rows.append(row("service", limit, rate(answers, begin, end)))
    service.limit(None, None)
    return unlimited, rows


def measure(options: Options) -> Result:
    seconds = 8.0 if options.quick else 30.0
    with engine(options, endless=True) as thread, Store(options.folder / "store") as store:

        async def run() -> tuple[float, list[dict[str, Any]]]:
            async with serving(thread, store) as service:
                return await measure_limits(service, seconds)

        unlimited, rows = asyncio.run(run())
        model = thread.engine.info.name
    figures = {"seconds": seconds, "unlimited_tps": sig(unlimited), "limits": rows}
    return Result(model, figures, bars(rows))


def bars(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    return [
        Bar(f"{row['kind']}, {row['limit_tps']:g} tokens/s: off by", abs(row["seen_over_limit"] - 1), 0.05, True)
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main("limits", __doc__ or "", measure))

"""Whether limits of throughput are kept: the tokens per second that were set, against those that were seen.

The service runs in this process. All calls would be faster without a limit (``unlimited_tps`` says how fast):

* request: one call with a rate in its terms;
* app: two apps with a limit each, answering at once;
* service: one limit for all, four clients of four apps.

The time measured begins two seconds after the first token, because a limit lets some tokens through at once when it
begins. The rate seen is that from the first to the last token within this time.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from bench.lib.arrivals import rate, steady_rate
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import Answer, InProcessClient, serving
from bench.lib.engine import EndlessEngine, engine
from bench.lib.stats import sig
from llmaas.calls import DEFAULT_TERMS, Terms
from llmaas.kvchunks.store.store import Store
from llmaas.records import AppId
from llmaas.service.service import Service

APPS = tuple(AppId(f"0/bench{i}") for i in range(4))
_SETTLING = 2.0
"""Seconds before the time measured."""
_OF_UNLIMITED = {"request": (0.4,), "app": (0.15, 0.3), "service": (0.4,)}
"""Limits, as parts of one client's speed without a limit, so that every machine is faster than they allow."""
_LONG = 4096
"""Tokens that no answer reaches within the time measured, even without a limit."""


async def listen(
    service: Service, apps: Sequence[AppId], seconds: float, terms: Terms = DEFAULT_TERMS
) -> tuple[list[list[float]], float, float]:
    """Each app's arrivals, all answering at once, and the begin and end of the time to look at (``perf_counter``)."""
    clients = [InProcessClient(service, app) for app in apps]
    contexts = [await client.create() for client in clients]
    answers: list[Answer] = [
        client.generate(context, f"Client {i} counts: one, two,", _LONG // len(apps), terms)
        for i, (client, context) in enumerate(zip(clients, contexts, strict=True))
    ]
    while not all(answer.arrivals for answer in answers):
        await asyncio.sleep(0.01)
    begin = perf_counter() + _SETTLING
    await asyncio.sleep(_SETTLING + seconds)
    end = perf_counter()
    for answer in answers:
        await answer.cancel()
    for client, context in zip(clients, contexts, strict=True):
        await client.delete(context)
    return [answer.arrivals for answer in answers], begin, end


def row_of(kind: str, limit: float, seen: float) -> dict[str, Any]:
    say(f"{kind:8} {limit:7.2f} tokens/s set, {seen:7.2f} seen")
    return {"kind": kind, "limit_tps": limit, "seen_tps": sig(seen), "seen_over_limit": sig(seen / limit)}


async def measure_limits(service: Service, seconds: float) -> tuple[float, list[dict[str, Any]]]:
    answers, begin, end = await listen(service, APPS[:1], 3.0)
    unlimited = steady_rate(answers[0], begin, end)
    limits = {kind: [sig(part * unlimited) for part in parts] for kind, parts in _OF_UNLIMITED.items()}
    rows = []
    (limit,) = limits["request"]
    answers, begin, end = await listen(service, APPS[:1], seconds, Terms(rate=limit))
    rows.append(row_of("request", limit, steady_rate(answers[0], begin, end)))
    for app, limit in zip(APPS, limits["app"], strict=False):
        service.limit(app, limit)
    answers, begin, end = await listen(service, APPS[:2], seconds)
    for app, limit, arrivals in zip(APPS, limits["app"], answers, strict=False):
        rows.append(row_of("app", limit, steady_rate(arrivals, begin, end)))
        service.limit(app, None)
    (limit,) = limits["service"]
    service.limit(None, limit)
    answers, begin, end = await listen(service, APPS, seconds)
    rows.append(row_of("service", limit, rate(answers, begin, end)))
    service.limit(None, None)
    return unlimited, rows


def measure(options: Options) -> Result:
    seconds = 8.0 if options.quick else 30.0
    with engine(options, kind=EndlessEngine) as thread, Store(options.folder / "store") as store:

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

"""What the daemon costs another process: its speed while llmaas generates, at several limits and with nice 0 and 19.

The other process, the neighbour, computes OpenSSL's SHA-256 on every core at once, as in LLM-OS' measurement of host
impact, so that whatever the daemon takes is taken from it. Each round measures the neighbour beside an idle daemon, and
beside one that answers one client: without a limit, with limits in tokens per second for the whole service, and without
a limit but with nice 19. Each round begins with another of these cases.

``impact`` is the share of the neighbour's throughput that is lost, against the idle daemon of the same round. Tokens
per second are those that the client saw meanwhile. ``fixed_threads`` is a second look, without a bar: a daemon that
keeps its number of threads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import daemon
from bench.lib.neighbour import Neighbour
from bench.lib.stats import rotated, sig, summary
from llmaas.api.client import Client
from llmaas.calls import Piece

PROMPT = "Once upon a time, in a land of mountains and rivers, there lived"
LIMITS = (2.0, 5.0, 10.0, 20.0)
_NOISE = 0.04
"""Two impacts that differ by less count as equal."""


@dataclass(frozen=True, slots=True)
class Case:
    """A way to run the daemon. ``daemon`` is a key of DAEMONS. ``rate``: None for no limit, 0.0 for no calls at all."""

    name: str
    daemon: str
    rate: float | None


CASES = (
    Case("idle", "nice_0", 0.0),
    *(Case(f"limit_{rate:g}", "nice_0", rate) for rate in LIMITS),
    Case("unlimited", "nice_0", None),
    Case("nice_19", "nice_19", None),
    Case("fixed_threads", "fixed", None),
)
DAEMONS = {"nice_0": (), "nice_19": ("--nice", "19"), "fixed": ("--no-adaptive-threads",)}


@dataclass(frozen=True, slots=True)
class Seen:
    """Bytes hashed per second, tokens per second."""

    hashed: float
    tokens: float


def pieces(client: Client) -> Generator[Piece, None, None]:
    """The pieces of answers that follow one another without an end, each in a fresh context."""
    while True:
        context = client.create().id
        try:
            with client.generate(context, prompt=PROMPT, max_tokens=1024) as answer:
                yield from (piece for piece in answer if piece.tokens)
        finally:
            client.delete(context)


def look(case: Case, client: Client, neighbour: Neighbour, seconds: float) -> Seen:
    """The neighbour's and the client's speed during ``seconds``."""
    if case.rate == 0.0:
        neighbour.begin(seconds)
        return Seen(neighbour.result(), 0.0)
    client.limit(rate=case.rate)
    answer = pieces(client)
    next(answer)
    neighbour.begin(seconds)
    begin = last = perf_counter()
    n = 0
    while last - begin < seconds:
        n += len(next(answer).tokens)
        last = perf_counter()
    found = Seen(neighbour.result(), n / (last - begin))
    answer.close()
    return found


def measure(options: Options) -> Result:
    seconds, rounds = (3.0, 2) if options.quick else (5.0, 7)
    seen: dict[str, list[Seen]] = {case.name: [] for case in CASES}
    with ExitStack() as stack:
        neighbour = Neighbour(len(os.sched_getaffinity(0)))
        stack.callback(neighbour.close)
        clients = {}
        for name, flags in DAEMONS.items():
            socket, _ = stack.enter_context(daemon(options, name, *flags))
            clients[name] = stack.enter_context(Client(socket, app="bench", admin=True))
            next(pieces(clients[name]))  # warm
        for i in range(rounds):
            for case in rotated(CASES, i):
                found = look(case, clients[case.daemon], neighbour, seconds)
                seen[case.name].append(found)
                say(f"round {i} {case.name:13} {found.hashed / 1e6:8.0f} MB/s {found.tokens:7.1f} tokens/s")
        model = str(clients["nice_0"].stats()["model"])
    figures = {case.name: _figures(seen, case) for case in CASES}
    return Result(model, {"processes": len(os.sched_getaffinity(0)), "cases": figures}, _bars(figures))


def _figures(seen: dict[str, list[Seen]], case: Case) -> dict[str, Any]:
    rounds = zip(seen[case.name], seen["idle"], strict=True)
    return {
        "hashed_mb_per_s": summary([one.hashed / 1e6 for one in seen[case.name]]),
        "tokens_per_s": summary([one.tokens for one in seen[case.name]]),
        "impact": sig(median(1.0 - one.hashed / idle.hashed for one, idle in rounds)),
    }


def _bars(figures: dict[str, dict[str, Any]]) -> list[Bar]:
    """The machine may be too slow to reach a limit under load, so only the lowest limit has a bar from below."""
    bars = []
    for rate in LIMITS:
        share = figures[f"limit_{rate:g}"]["tokens_per_s"]["median"] / rate
        bars.append(Bar(f"tokens over the limit of {rate:g} a second", share, 1.05, at_most=True))
    bars.append(Bar(f"tokens of the limit of {LIMITS[0]:g} a second", bars[0].value, 0.95))
    rising = [f"limit_{rate:g}" for rate in LIMITS] + ["unlimited"]
    for less, more in pairwise(rising):
        difference = figures[less]["impact"] - figures[more]["impact"]
        bars.append(Bar(f"impact at {less} beyond that at {more}", difference, _NOISE, at_most=True))
    difference = figures["nice_19"]["impact"] - figures["unlimited"]["impact"]
    bars.append(Bar("impact with nice 19 beyond that with nice 0", difference, _NOISE, at_most=True))
    return bars


if __name__ == "__main__":
    sys.exit(main("host_impact", __doc__ or "", measure))

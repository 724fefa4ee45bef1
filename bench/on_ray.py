"""A cluster on Ray for real: what placing a call takes, how soon answers begin, and how soon all goes on after a kill.

Three daemons with stores of their own and the fake engine, which takes so long for each token as a small board does,
and sleeps meanwhile: so three of them are three machines also where there are two cores. They are paired over links of
100 Mbit/s, on one local Ray cluster with its agents and controller, behind an entry in this process.

``decisions``: from the entry's question to the controller's answer, through Ray, for contexts that are there and for
texts by their marks.

``starts``: from a request to the first piece of its answer, for conversations that go on at random, a few much more
often than the rest, and for new ones that begin with the same document. ``placement`` is the service's; ``random`` and
``round_robin`` send each call to another node, whatever is there: the context comes along by the same moves. Each has
conversations of its own, and the same calls at the same times.

``recovery``: seconds from kill -9 until calls are answered. Of the controller: until it says again where a call goes.
Of a node: until a new conversation is answered elsewhere; and, from the moment at which its daemon is started again,
until a conversation of its own is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.node import NodeProcess, paired_nodes
from bench.lib.ray_nodes import on_ray
from bench.lib.stats import sig
from llmaas.api.async_client import AsyncClient
from llmaas.errors import LlmaasError
from llmaas.nodes.cluster import ray_cluster
from llmaas.nodes.cluster.entry import ClusterEntry
from llmaas.nodes.cluster.fleet import WayToNodes
from llmaas.nodes.cluster.states import CallPlacement, ClusterRefusal, ContextMove, Kin, PlaceAsked, PrefixChain
from llmaas.records import Message

NAMES = ("attic", "barn", "cellar")
TOKEN_MS, LINK_BITS = 1.0, 1e8
"""A thousand tokens of a prompt a second: a good board's, or a phone's."""
_WORDS = ("tide", "comes", "in", "goes", "out", "nobody", "is", "at", "harbour", "boat", "waits", "for", "morning")
_ANSWER, _LATE_S, _AGAIN_S = 8, 60.0, 0.05
_DECISION_MS, _BETTER = 20.0, 1.2


@dataclass(frozen=True, slots=True)
class Load:
    """``rate``: calls a second, in the mean; ``fresh``: the share of them that begin a conversation."""

    contexts: int
    calls: int
    rate: float
    fresh: float = 0.2
    begun: int = 600
    """Characters of a conversation's first message, each a token of the fake engine."""
    turn: int = 40


class DrawnFleet(ray_cluster.RayFleet):
    """Calls go where ``draw`` says, and their contexts with them."""

    def __init__(self, draw: Callable[[], str]) -> None:
        super().__init__()
        self._draw = draw

    async def where(self, asked: PlaceAsked) -> CallPlacement | ClusterRefusal:
        node = self._draw()
        found = await self.locate(asked.app, asked.word) if asked.word else []
        if not found or found[0].node == node:
            return CallPlacement(node)
        if not found[0].name:  # it has none that another node could call it by
            return CallPlacement(found[0].node)
        return CallPlacement(node, moves=(ContextMove(asked.app, found[0].word, found[0].node, node),))


def text(rng: random.Random, n: int) -> str:
    return " ".join(rng.choices(_WORDS, k=n // 4))[:n]


# -- starts


@contextlib.asynccontextmanager
async def entry(fleet: ray_cluster.RayFleet, socket: Path) -> AsyncIterator[ray_cluster.RayFleet]:
    served = ClusterEntry(fleet, socket, WayToNodes(None))
    served.start()
    try:
        yield fleet
    finally:
        await served.close()
        fleet.close()


def fleets(seed: int, *, quick: bool) -> dict[str, Callable[[], ray_cluster.RayFleet]]:
    rng, turns = random.Random(seed), itertools.cycle(NAMES)
    found: dict[str, Callable[[], ray_cluster.RayFleet]] = {
        "placement": ray_cluster.RayFleet,
        "random": lambda: DrawnFleet(lambda: rng.choice(NAMES)),
        "round_robin": lambda: DrawnFleet(lambda: next(turns)),
    }
    return {name: make for name, make in found.items() if not quick or name != "round_robin"}


async def started(socket: Path, placer: str, load: Load, seed: int) -> list[float]:
    """Seconds to the first piece of each answer."""
    rng = random.Random(seed)
    app = f"bench-{placer}"
    clients = [await AsyncClient.connect(socket, app=app) for _ in range(8)]
    try:
        begun = text(rng, load.begun)
        for i in range(load.contexts):
            await clients[0].create(name=f"c{i}")
            await first_piece(clients[0], f"c{i}", [Message("user", f"{i} {begun}")])
        weights = [1 / (i + 1) for i in range(load.contexts)]
        document = Message("system", text(rng, load.begun))
        waiting, at = list[Awaitable[float]](), time.perf_counter()
        for n in range(load.calls):
            at += rng.expovariate(load.rate)
            said = Message("user", text(rng, load.turn))
            is_new, context = rng.random() < load.fresh, rng.choices(range(load.contexts), weights)[0]
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            client = clients[n % len(clients)]
            asking = brought(client, [document, said]) if is_new else first_piece(client, f"c{context}", [said])
            waiting.append(asyncio.ensure_future(asking))
        return list(await asyncio.wait_for(asyncio.gather(*waiting), _LATE_S))
    finally:
        for client in clients:
            await client.close()


async def first_piece(client: AsyncClient, context: str, messages: Sequence[Message], begin: float = 0.0) -> float:
    begin = begin or time.perf_counter()
    stream = client.generate(context, messages, max_tokens=_ANSWER)
    seconds = 0.0
    async for piece in stream:
        if piece.tokens and not seconds:
            seconds = time.perf_counter() - begin
    return seconds


async def brought(client: AsyncClient, messages: Sequence[Message]) -> float:
    """A conversation that is sent as a whole."""
    begin = time.perf_counter()
    found = await client.resolve(messages)
    return await first_piece(client, found.context.id, messages[found.n_messages :], begin)


async def starts(options: Options, load: Load) -> dict[str, dict[str, float]]:
    found = {}
    for placer, make in fleets(options.seed, quick=options.quick).items():
        socket = options.folder / f"{placer}.sock"
        async with entry(make(), socket):
            seconds = await started(socket, placer, load, options.seed)
        found[placer] = {name: sig(float(np.percentile(seconds, p))) for name, p in (("p50_s", 50), ("p99_s", 99))}
        found[placer]["mean_s"] = sig(sum(seconds) / len(seconds))
        say(f"{placer:12} first piece: mean {found[placer]['mean_s']} p50 {found[placer]['p50_s']}"
            f" p99 {found[placer]['p99_s']} s of {len(seconds)} calls")  # fmt: skip
    return found


# -- decisions


async def decisions(options: Options, n: int) -> dict[str, float]:
    """Milliseconds."""
    app, socket, rng = "bench-placement", options.folder / "decisions.sock", random.Random(options.seed)
    async with entry(ray_cluster.RayFleet(), socket) as fleet:
        client = await AsyncClient.connect(socket, app=app)
        names = [info.name for info in await client.contexts() if not info.anonymous]
        brings = await text_asked(client, app, (await fleet.nodes())[0].kin, text(rng, 1000))
        await client.close()
        times = []
        for i in range(n):
            asked = PlaceAsked(app, rng.choice(names), 40) if i % 2 else brings
            begin = time.perf_counter()
            await fleet.where(asked)
            times.append(1000 * (time.perf_counter() - begin))
    p50, p99 = (sig(float(np.percentile(times, p))) for p in (50, 99))
    say(f"a decision through Ray: p50 {p50} p99 {p99} ms of {n}")
    return {"p50_ms": p50, "p99_ms": p99, "n": len(times)}


async def text_asked(client: AsyncClient, app: str, kin: Kin, content: str) -> PlaceAsked:
    """As an entry asks for a conversation that is sent as a whole."""
    found = await client.marks_of([Message("user", content)], [kin.root(app)])
    return PlaceAsked(app, "", found.n_tokens, chains=(PrefixChain(kin, found.chains[0]),))


# -- recovery


async def until(what: Callable[[], Awaitable[object]]) -> float:
    """Seconds until it succeeds."""
    begin = time.perf_counter()
    while True:
        with contextlib.suppress(LlmaasError, OSError):
            await asyncio.wait_for(what(), _LATE_S)
            return time.perf_counter() - begin
        if time.perf_counter() - begin > _LATE_S:
            raise TimeoutError(f"not within {_LATE_S:g} s")
        await asyncio.sleep(_AGAIN_S)


async def recovery(options: Options, nodes: Sequence[NodeProcess]) -> dict[str, float]:
    socket = options.folder / "recovery.sock"
    async with entry(ray_cluster.RayFleet(), socket) as fleet:
        client = await AsyncClient.connect(socket, app="bench-recovery")
        pid = await asyncio.to_thread(ray_cluster.controller_pid)
        os.kill(pid, signal.SIGKILL)
        controller_s = await until(lambda: fleet.where(PlaceAsked("bench-recovery", "", 40)))
        await client.create(name="stays")
        await client.ask("stays", "hello", max_tokens=_ANSWER)
        at = {found.node for found in await fleet.locate("bench-recovery", "stays")}
        victim = next(node for node in nodes if node.name in at)
        await asyncio.to_thread(victim.kill)
        numbers = itertools.count()

        async def asked_elsewhere() -> None:
            name = f"new-{next(numbers)}"
            await client.create(name=name)
            await client.ask(name, "hello", max_tokens=_ANSWER)

        elsewhere_s = await until(asked_elsewhere)
        await asyncio.to_thread(victim.start)
        back_s = await until(lambda: client.ask("stays", "and?", max_tokens=_ANSWER))
        await client.close()
    found = {"controller_s": sig(controller_s), "elsewhere_s": sig(elsewhere_s), "back_s": sig(back_s)}
    say(f"after kill -9: of the controller {found['controller_s']} s, of a node elsewhere {found['elsewhere_s']} s,"
        f" its own {found['back_s']} s after it is back")  # fmt: skip
    return found


def measured(options: Options, load: Load, n_decisions: int) -> dict[str, Any]:
    flags = ("--cells", "16384", "--pool-bytes", "64M", "--token-ms", str(TOKEN_MS))
    with paired_nodes(replace(options, threads=1), NAMES, *flags, fake=True) as nodes, on_ray(nodes):
        for node in nodes:
            node.link.bits_per_s = LINK_BITS
        return {
            "starts": asyncio.run(starts(options, load)),
            "decisions": asyncio.run(decisions(options, n_decisions)),
            "recovery": asyncio.run(recovery(options, nodes)),
        }


def measure(options: Options) -> Result:
    load, n_decisions = (Load(9, 60, 12.0), 200) if options.quick else (Load(30, 600, 12.0), 2000)
    figures = measured(options, load, n_decisions)
    ours, drawn = (figures["starts"][placer]["mean_s"] for placer in ("placement", "random"))
    bars = [
        Bar("random over placement: mean seconds to the first piece", drawn / ours, _BETTER),
        Bar("a decision through Ray: ms, p99", figures["decisions"]["p99_ms"], _DECISION_MS, at_most=True),
    ]
    return Result("none: the fake engine", figures, bars)


if __name__ == "__main__":
    sys.exit(main("on_ray", __doc__ or "", measure))

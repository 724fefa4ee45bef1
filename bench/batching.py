"""Clients that decode together through the service, against a bare llama.cpp batch of as many.

Four clients with a context each fit into the cells. Eight do not: they need twice the cells there are, so the service
runs some of them and pauses the others, by turns. Five ways alternate in one run, each in processes of its own:

* bare_unified: four sequences in one ``llama_decode`` a token and four samplers, all in one buffer of cells, as the
  service has it ("unified"; bars are against this one);
* bare_streams: the same, with a buffer of cells for each sequence, which is faster;
* service: four clients, called in this process;
* socket: four clients of a real daemon, each on a connection of its own;
* slicing: eight clients in this process, from their submission until the first of them has all its tokens. How long
  each runs before it is paused is up to the service; switches, and coding what they leave behind, are in the time.

Rates are tokens per second of all clients while all are answering. ``gap_ms``: what a client waits from one token to
its next; with slicing, waits in which others ran are told apart as ``pause_ms``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from bench.lib.arrivals import gaps, gaps_and_pauses, percentiles_ms, rate, together, turns
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import Answer, BenchClient, InProcessClient, SocketClient, serving
from bench.lib.daemon import daemon
from bench.lib.engine import Bare, EndlessEngine, engine
from bench.lib.stats import rotated, sig, summary
from bench.lib.texts import prose
from llmaas.api.async_client import AsyncClient
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import Store
from llmaas.planner.settings import PlannerChoices
from llmaas.records import ContextId

FIT, MANY = 4, 8
_TAG = 16
"""Tokens of room for the text that makes each client's context differ from the others'."""
_OTHERS = 8 * FIT
"""A client that gets no token while the others get so many has been paused for them."""


@dataclass(frozen=True)
class Run:
    """One way, measured once: tokens per second, gaps and pauses in seconds, pauses of the client that had fewest."""

    rate: float
    gaps: list[float]
    pauses: list[float]
    paused: int = 0


def together_run(answers: Sequence[Sequence[float]]) -> Run:
    """From the arrivals of answers that were all under way at once."""
    begin, end = together(answers)
    return Run(rate(answers, begin, end), gaps(answers, begin, end), [])


def sliced_run(begin: float, answers: Sequence[Sequence[float]]) -> Run:
    """From the arrivals of answers that took turns from ``begin`` on."""
    end = min(answer[-1] for answer in answers)
    arrived = [[t for t in answer if t <= end] for answer in answers]
    pauses = min(len(some) for some in turns(arrived, _OTHERS))
    return Run(rate(answers, begin, end), *gaps_and_pauses(arrived, _OTHERS), pauses)


class Crowd:
    """Clients with equal contexts of ``n`` tokens each. Each client's answer begins after a text of its own."""

    def __init__(self, clients: Sequence[BenchClient], n: int) -> None:
        self._clients, self._n = clients, n
        self._contexts: list[ContextId] = []

    async def set_up(self, text: str) -> None:
        whole = await self._clients[0].create()
        await self._clients[0].append(whole, text)
        await self._clients[0].wait_idle()  # forks share what is stored
        for client in self._clients:
            self._contexts.append(await client.fork(whole, self._n))
        await self._clients[0].delete(whole)

    async def answer(self, n_clients: int, n_new: int) -> list[Answer]:
        """Answers of the first ``n_clients``, all at once; afterwards the contexts are as they were."""
        await self._clients[0].wait_idle()
        pairs = list(zip(self._clients, self._contexts, strict=True))[:n_clients]
        answers = [client.generate(context, tag(i), n_new) for i, (client, context) in enumerate(pairs)]
        for answer in answers:
            done = await answer.done()
            if done.n_generated != n_new:
                raise RuntimeError(f"an answer ended early: {done}")
        for client, context in pairs:
            await client.truncate(context, self._n)
        return answers


def tag(i: int) -> str:
    return f" No. {i}:"


async def measure_length(thread: EngineThread, options: Options, n: int, n_new: int, cells: int, rounds: int) -> Any:
    text = prose(thread.engine, n + 8, options.seed)
    tokens = thread.engine.tokenize(text, special=True, bos=True)[:n]
    contexts = [tokens + thread.engine.tokenize(tag(i), special=False, bos=False) for i in range(FIT)]
    flags = ("--cells", str(cells))
    with ExitStack() as stack:
        shared = stack.enter_context(Bare(options, cells, FIT, unified=True))
        own = stack.enter_context(Bare(options, cells, FIT))
        socket, _ = stack.enter_context(daemon(options, f"daemon{n}", *flags, endless=True))
        store = stack.enter_context(Store(options.folder / f"inside{n}"))
        async with AsyncExitStack() as parts:
            service = await parts.enter_async_context(serving(thread, store, max_running=FIT))
            connections = [
                await parts.enter_async_context(await AsyncClient.connect(socket, app="bench")) for _ in range(FIT)
            ]
            inside = Crowd([InProcessClient(service)] * MANY, n)
            over = Crowd([SocketClient(client) for client in connections], n)
            for crowd in (inside, over):
                await crowd.set_up(text)

            async def bare(batch: Bare, count: int) -> Run:
                return together_run([batch.batch(contexts, count)] * FIT)

            async def four(crowd: Crowd, count: int) -> Run:
                return together_run([answer.arrivals for answer in await crowd.answer(FIT, count)])

            async def eight(count: int) -> Run:
                answers = await inside.answer(MANY, count)
                return sliced_run(answers[0].begin, [answer.arrivals for answer in answers])

            ways: dict[str, Callable[[int], Awaitable[Run]]] = {
                "bare_unified": lambda count: bare(shared, count),
                "service": lambda count: four(inside, count),
                "bare_streams": lambda count: bare(own, count),
                "socket": lambda count: four(over, count),
                "slicing": eight,
            }
            return await alternate(ways, n_new, rounds)


async def alternate(ways: dict[str, Callable[[int], Awaitable[Run]]], n_new: int, rounds: int) -> dict[str, list[Run]]:
    """Each way once a round, each round begun by another way; before that once with short answers, to warm up."""
    names = list(ways)
    for name in names:
        await ways[name](n_new // 2)
    found: dict[str, list[Run]] = {name: [] for name in names}
    for i in range(rounds):
        for name in rotated(names, i):
            run = await ways[name](n_new)
            found[name].append(run)
            say(f"round {i} {name:12} {run.rate:7.1f} tokens/s least paused {run.paused} times")
    return found


def figures_of(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Figures by way. Ratios are medians over rounds of (way / bare batch of the same round), for each bare layout."""
    figures: dict[str, Any] = {}
    for way, all_runs in runs.items():
        row: dict[str, Any] = {"tps": summary([run.rate for run in all_runs])}
        for layout, key in (("bare_unified", "over_bare"), ("bare_streams", "over_streams")):
            row[key] = sig(median(run.rate / bare.rate for run, bare in zip(all_runs, runs[layout], strict=True)))
        row["gap_ms"] = percentiles_ms([gap for run in all_runs for gap in run.gaps])
        if pauses := [pause for run in all_runs for pause in run.pauses]:
            row["pause_ms"] = percentiles_ms(pauses)
        figures[way] = row
    figures["slicing"]["fewest_pauses"] = min(run.paused for run in runs["slicing"])
    return figures


def measure(options: Options) -> Result:
    lengths, rounds = ((512,), 3) if options.quick else ((512, 1024), 7)
    n_new = max(96 if options.quick else 160, 2 * PlannerChoices().quantum)  # enough for two quanta each
    rows = []
    options.kept.expect(len(lengths))
    with engine(options, 256) as thread:
        model = thread.engine.info.name
    for n in lengths:
        cells = -(-FIT * (n + _TAG + n_new) // 256) * 256
        say(f"contexts of {n} tokens, {cells} cells")
        found = options.step(f"{n} tokens", partial(_figures_at, options, n, n_new, cells, rounds))
        rows.append({"context_tokens": n, "answer_tokens": n_new, "cells": cells, **found})
    return Result(model, {"lengths": rows, "quantum": PlannerChoices().quantum}, bars(rows))


def _figures_at(options: Options, n: int, n_new: int, cells: int, rounds: int) -> dict[str, Any]:
    with engine(options, cells, kind=EndlessEngine) as thread:
        return figures_of(asyncio.run(measure_length(thread, options, n, n_new, cells, rounds)))


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    found = []
    for row in rows:
        n = row["context_tokens"]
        for way in ("service", "socket"):
            found.append(Bar(f"{n} tokens: {FIT} through the {way} over a bare batch", row[way]["over_bare"], 0.95))
        slicing = row["slicing"]
        found.append(Bar(f"{n} tokens: {MANY} in the cells of {FIT}, over a bare batch", slicing["over_bare"], 0.8))
        found.append(Bar(f"{n} tokens: pauses of the client with fewest", slicing["fewest_pauses"], 1))
    return found


if __name__ == "__main__":
    sys.exit(main("batching", __doc__ or "", measure))

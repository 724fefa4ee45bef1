"""How long the scheduler's quantum should be: what switching costs, against how long a client is paused.

As in the evaluation of LLM-OS (B. E. Uerun, TU Munich 2025, slide 29): 16 clients want long answers at once, each with
a context of its own, and only one, or only four, of the contexts fit into the cells. The service runs each client for
``quantum`` tokens, then pauses it and switches to another context. For each quantum the tokens per second of all
clients together are compared with one client (or four) that nobody interrupts, measured before and after in the same
run.

``longest_wait_s`` is how long one client is paused if all run in order: quantum * (16 - fitting) / tokens per second;
``seen_wait_s`` is the longest pause that was seen. ``turn_tokens`` is the median of the tokens between two pauses.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from bench.lib.arrivals import gaps, rate, together, turns
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import InProcessClient, serving
from bench.lib.engine import EndlessEngine, engine
from bench.lib.stats import sig
from bench.lib.texts import prose
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import Store
from llmaas.records import ContextId

CLIENTS = 16
QUANTA = (10, 20, 30, 40, 50, 100)
_GPU: dict[str, Any] = {"tps": (52.45, 63.14, 70.70, 73.79, 76.44, 79.10), "single": 81.85}
_CPU: dict[str, Any] = {"tps": (1.03, 1.35, 1.64, 1.80, 1.86, 2.48), "single": 2.84}
LLM_OS = {"quantum": QUANTA, "gpu": _GPU, "cpu": _CPU}
"""LLM-OS' own figures, tokens per second (slide 29)."""
_ENDLESS = 1 << 20
"""Tokens that no answer reaches."""
_LEAST = 0.9
"""The part of the speed without switching that a quantum must keep to be chosen."""


def wait_for_turn(quantum: int, fitting: int, tps: float) -> float:
    """Seconds that a client is paused, if all run in order."""
    return quantum * (CLIENTS - fitting) / tps


def choose(rows: Sequence[dict[str, Any]]) -> int:
    """The shortest quantum that keeps ``_LEAST`` of the speed with however many fit; the longest if none does."""
    quanta: list[int] = sorted({row["quantum"] for row in rows})
    good = [q for q in quanta if all(row["share"] >= _LEAST for row in rows if row["quantum"] == q)]
    return good[0] if good else quanta[-1]


class Crowd:
    """All clients' contexts, of ``n`` tokens each, in one store; each measurement opens it with a service of its own.

    ``fitting``: how many of the contexts fit into the cells.
    """

    def __init__(self, thread: EngineThread, store: Store, n: int, fitting: int) -> None:
        self._thread, self._store, self._n, self._fitting = thread, store, n, fitting
        self._contexts: list[ContextId] = []

    async def set_up(self, text: str) -> None:
        async with serving(self._thread, self._store) as service:
            client = InProcessClient(service)
            whole = await client.create()
            await client.append(whole, text)
            await client.wait_idle()  # forks share what is stored
            self._contexts = [await client.fork(whole, self._n) for _ in range(CLIENTS)]
            await client.delete(whole)

    async def undisturbed(self, n_new: int) -> float:
        """Tokens per second of as many clients as fit."""
        async with serving(self._thread, self._store, max_running=self._fitting) as service:
            client = InProcessClient(service)
            mine = self._contexts[: self._fitting]
            answers = [client.generate(context, tag(i), n_new) for i, context in enumerate(mine)]
            for answer in answers:
                await answer.done()
            for context in mine:
                await client.truncate(context, self._n)
        arrivals = [answer.arrivals for answer in answers]
        return rate(arrivals, *together(arrivals))

    async def in_turns(self, quantum: int, seconds: float) -> dict[str, Any]:
        """Figures of all clients at once, for ``seconds`` from the first token on.

        Raises RuntimeError if a client is done before.
        """
        choices: dict[str, Any] = {"quantum": quantum, "max_running": self._fitting}
        async with serving(self._thread, self._store, **choices) as service:
            client = InProcessClient(service)
            answers = [client.generate(context, tag(i), _ENDLESS) for i, context in enumerate(self._contexts)]
            while not any(answer.arrivals for answer in answers):
                await asyncio.sleep(0.001)
            begin = perf_counter()
            await asyncio.sleep(seconds)
            end = perf_counter()
            if any(answer.ended for answer in answers):
                raise RuntimeError("a client was done before the time was over; clients seem not to take turns")
            arrivals = [[t for t in answer.arrivals if t <= end] for answer in answers]
            for answer in reversed(answers):  # those that wait go first: nobody is switched in for nothing
                await answer.cancel()
            for context in self._contexts:
                await client.truncate(context, self._n)
        return self._row(quantum, arrivals, begin, end)

    def _row(self, quantum: int, arrivals: list[list[float]], begin: float, end: float) -> dict[str, Any]:
        tps = rate(arrivals, begin, end)
        all_gaps = gaps(arrivals)
        whole = [turn for some in turns(arrivals, self._fitting * quantum // 2) for turn in some]
        first_waits = [times[0] - begin if times else end - begin for times in arrivals]
        return {
            "quantum": quantum,
            "tps": sig(tps),
            "turn_tokens": median(whole) if whole else None,  # None: no client was paused in the time
            "turns": len(whole),
            "longest_wait_s": sig(wait_for_turn(quantum, self._fitting, tps)),
            "seen_wait_s": sig(max(all_gaps + first_waits)),
        }


def tag(i: int) -> str:
    return f" No. {i}:"


async def sweep(crowd: Crowd, text: str, quanta: Sequence[int], seconds: float, n_new: int) -> list[dict[str, Any]]:
    """A row for each quantum. ``n_new``: tokens of an answer that nobody interrupts."""
    await crowd.set_up(text)
    await crowd.undisturbed(16)  # to warm up
    rows = []
    for quantum in quanta:
        before = await crowd.undisturbed(n_new)
        row = await crowd.in_turns(quantum, seconds)
        alone = (before + await crowd.undisturbed(n_new)) / 2
        rows.append({**row, "undisturbed_tps": sig(alone), "share": sig(row["tps"] / alone)})
        say(f"quantum {quantum:3}: {row['tps']:7.1f} of {alone:7.1f} tokens/s, turns of {row['turn_tokens']} tokens")
    return rows


def measure(options: Options) -> Result:
    n, seconds, quanta = (512, 4.0, (10, 30, 50)) if options.quick else (1024, 20.0, QUANTA)
    n_new = 64 if options.quick else 128
    rows: list[dict[str, Any]] = []
    options.kept.expect(2)
    with engine(options, 256) as thread:
        model = thread.engine.info.name
    for fitting in (1, 4):
        cells = -(-fitting * (n + n // 5) // 256) * 256  # room to grow, but not for one more
        say(f"{CLIENTS} contexts of {n} tokens, {fitting} of which fit into {cells} cells")
        make = partial(_swept, options, fitting, cells, n, quanta, seconds, n_new)
        rows += [{"fitting": fitting, **row} for row in options.step(f"{fitting} fit", make)]
    figures = {"context_tokens": n, "clients": CLIENTS, "seconds": seconds, "rows": rows, "llm_os": LLM_OS}
    figures["choice"] = choose(rows)
    return Result(model, figures, bars(rows))


def _swept(
    options: Options, fitting: int, cells: int, n: int, quanta: Sequence[int], seconds: float, n_new: int
) -> list[dict[str, Any]]:
    with engine(options, cells, kind=EndlessEngine) as thread, Store(options.folder / f"fits{fitting}") as store:
        text = prose(thread.engine, n + 8, options.seed)
        return asyncio.run(sweep(Crowd(thread, store, n, fitting), text, quanta, seconds, n_new))


def bars(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """At each quantum, at least the share of a single client's speed that LLM-OS keeps on its GPU, its best."""
    theirs = {q: tps / _GPU["single"] for q, tps in zip(QUANTA, _GPU["tps"], strict=True)}
    return [
        Bar(f"{row['fitting']} of {CLIENTS} fit, quantum {row['quantum']}: share of the speed undisturbed",
            row["share"], sig(theirs[row["quantum"]]))
        for row in rows
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("quantum", __doc__ or "", measure))

"""How long a turn should be: what taking turns costs, against how long one waits for a turn.

As in the evaluation of LLM-OS (B. E. Uerun, TU Munich 2025, slide 29): 16 clients want long answers at once, each with
a context of its own, and only one, or only four, of the contexts fit into the cells. The service gives each client
turns of ``quantum`` tokens and switches contexts in between. For each quantum the tokens per second of all clients
together are compared with one client (or four) that nobody interrupts, measured before and after in the same run.

``longest_wait_s`` is what one client waits from the end of a turn to its next one if all take turns in order:
quantum * (16 - fitting) / tokens per second; ``seen_wait_s`` is the longest that was seen while it was measured.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

from bench.lib.arrivals import gaps, rate, together, turns
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import Inside, serving
from bench.lib.engine import engine
from bench.lib.stats import sig
from bench.lib.texts import prose
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import Store
from llmaas.records import ContextId

CLIENTS = 16
QUANTA = (10, 20, 30, 40, 50, 100)
LLM_OS = {
    "quantum": QUANTA,
    "gpu": {"tps": (52.45, 63.14, 70.70, 73.79, 76.44, 79.10), "single": 81.85},
    "cpu": {"tps": (1.03, 1.35, 1.64, 1.80, 1.86, 2.48), "single": 2.84},
}
"""LLM-OS' own figures, tokens per second (slide 29)."""
_ENDLESS = 1 << 20
_LEAST = 0.9
"""Of the speed without switching that the quantum we would choose must keep."""


def wait_for_turn(quantum: int, fitting: int, tps: float) -> float:
    """Seconds between two turns of one client, if all take turns in order."""
    return quantum * (CLIENTS - fitting) / tps


def choose(rows: Sequence[dict[str, Any]]) -> int:
    """The shortest quantum that keeps ``_LEAST`` of the speed with however many fit; the longest if none does."""
    quanta = sorted({row["quantum"] for row in rows})
    good = [q for q in quanta if all(row["share"] >= _LEAST for row in rows if row["quantum"] == q)]
    return good[0] if good else quanta[-1]


class Crowd:
    """The contexts of all clients, in a store that services take up one after another."""

    def __init__(self, thread: EngineThread, store: Store, n: int, fitting: int) -> None:
        self._thread, self._store, self._n, self._fitting = thread, store, n, fitting
        self._contexts: list[ContextId] = []

    async def set_up(self, text: str) -> None:
        async with serving(self._thread, self._store) as service:
            door = Inside(service)
            whole = await door.create()
            await door.append(whole, text)
            await door.rest()  # copies share what is stored
            self._contexts = [await door.copy(whole, self._n) for _ in range(CLIENTS)]
            await door.delete(whole)

    async def undisturbed(self, n_new: int) -> float:
        """Tokens per second of as many clients as fit."""
        async with serving(self._thread, self._store, max_running=self._fitting) as service:
            door = Inside(service)
            mine = self._contexts[: self._fitting]
            answers = [door.answer(context, tag(i), n_new) for i, context in enumerate(mine)]
            for answer in answers:
                await answer.done()
            for context in mine:
                await door.cut(context, self._n)
        arrivals = [answer.arrivals for answer in answers]
        return rate(arrivals, *together(arrivals))

    async def in_turns(self, quantum: int, seconds: float) -> dict[str, Any]:
        """All clients at once, from the first token on, for ``seconds``; nobody is done by then."""
        settings = {"quantum": quantum, "max_running": self._fitting}
        async with serving(self._thread, self._store, **settings) as service:
            door = Inside(service)
            answers = [door.answer(context, tag(i), _ENDLESS) for i, context in enumerate(self._contexts)]
            while not any(answer.arrivals for answer in answers):
                await asyncio.sleep(0.001)
            begin = perf_counter()
            await asyncio.sleep(seconds)
            end = perf_counter()
            if any(answer.ended for answer in answers):
                raise RuntimeError("a client was done before the time was over; clients seem not to take turns")
            arrivals = [[t for t in answer.arrivals if t <= end] for answer in answers]
            for answer in reversed(answers):  # who waits first, so that nobody is brought back for nothing
                await answer.cancel()
            for context in self._contexts:
                await door.cut(context, self._n)
        return self._row(quantum, arrivals, begin, end)

    def _row(self, quantum: int, arrivals: list[list[float]], begin: float, end: float) -> dict[str, Any]:
        tps = rate(arrivals, begin, end)
        all_gaps = gaps(arrivals)
        whole = [turn for some in turns(arrivals, self._fitting * quantum // 2) for turn in some]
        first_waits = [times[0] - begin if times else end - begin for times in arrivals]
        return {
            "quantum": quantum,
            "tps": sig(tps),
            "turn_tokens": median(whole) if whole else None,  # none was over in the time
            "turns": len(whole),
            "longest_wait_s": sig(wait_for_turn(quantum, self._fitting, tps)),
            "seen_wait_s": sig(max(all_gaps + first_waits)),
        }


def tag(i: int) -> str:
    return f" No. {i}:"


async def sweep(crowd: Crowd, text: str, quanta: Sequence[int], seconds: float, n_new: int) -> list[dict[str, Any]]:
    """``n_new``: tokens of an answer that nobody interrupts."""
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
    runs = {}
    for fitting in (1, 4):
        cells = -(-fitting * (n + n // 5) // 256) * 256  # room to grow, but not for one more
        say(f"{CLIENTS} contexts of {n} tokens, {fitting} of which fit into {cells} cells")
        with engine(options, cells, endless=True) as thread:
            text = prose(thread.engine, n + 8, options.seed)
            with Store(options.folder / f"fits{fitting}") as store:
                crowd = Crowd(thread, store, n, fitting)
                runs[fitting] = asyncio.run(sweep(crowd, text, quanta, seconds, n_new))
            model = thread.engine.info.name
    rows = [{"fitting": fitting, **row} for fitting, run in runs.items() for row in run]
    figures = {"context_tokens": n, "clients": CLIENTS, "seconds": seconds, "rows": rows, "llm_os": LLM_OS}
    figures["choice"] = choose(rows)
    return Result(model, figures, bars(rows))


def bars(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """Better than LLM-OS' best share of its single client's speed at each quantum: its GPU's."""
    theirs = {q: tps / LLM_OS["gpu"]["single"] for q, tps in zip(QUANTA, LLM_OS["gpu"]["tps"], strict=True)}
    return [
        Bar(f"{row['fitting']} of {CLIENTS} fit, quantum {row['quantum']}: share of the speed undisturbed",
            row["share"], sig(theirs[row["quantum"]]))
        for row in rows
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("quantum", __doc__ or "", measure))

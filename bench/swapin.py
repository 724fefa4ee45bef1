"""Bringing a context back from a slow disk: reading, computing, and both at once.

A context is brought back from DISK, its payload files out of the page cache, on a disk that is throttled to several
rates around the crossover. There, reading the coded chunks takes as long as computing them from tokens. Three services
over the same store bring it back, each in its own way: "load_first" only reads, "recompute_first" only computes, and
"balanced" does what the daemon does: it learns both costs as it goes. The first switch after a change of rate is
reported apart.

The kernel throttles (a cgroup) where this runs as root; "throttle" in the figures says so, or that the store slept.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import serving
from bench.lib.engine import engine
from bench.lib.stats import sig
from bench.lib.swapped import POOL_BYTES, SPARE, SwappedContexts
from bench.lib.texts import prose
from bench.lib.throttle import Throttle
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.store import Store
from llmaas.planner.settings import bit_settings
from llmaas.records import CHUNK_TOKENS, Precision

PRECISION = Precision(4, 4)
TIMES_CROSSOVER = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 0.0)
TIMES_QUICK = (0.5, 1.0, 2.0, 8.0, 0.0)
"""Rates of the disk, as multiples of the rate at the crossover; 0: not throttled."""


class ColdSwitch:
    """Switches to the context of ``n`` tokens, all of it on DISK, on a throttled disk."""

    def __init__(self, contexts: SwappedContexts, store: Store, throttle: Throttle, n: int) -> None:
        self._contexts, self._store, self._throttle, self._n = contexts, store, throttle, n

    async def seconds(self, rate: float) -> float:
        """How long one switch takes at ``rate`` bytes a second; 0: not throttled."""
        await self._contexts.push_out()
        await self._contexts.leave_pool()
        self._store.evict_page_cache()
        with self._throttle.at(rate):
            done = await self._contexts.switch(self._n)
        if done.switch.cells or done.switch.pool or done.switch.disk + done.switch.recomputed < self._n - 1:
            raise RuntimeError(f"{self._n} tokens should have been on DISK: {done.switch}")
        return done.switch.switch_ms / 1e3


async def fill(thread: EngineThread, folder: Path, text: str, n: int) -> None:
    """Compute the contexts and leave them on disk."""
    choices: dict[str, Any] = {"pool_bytes": POOL_BYTES, **bit_settings(PRECISION)}
    with Store(folder) as store:
        async with serving(thread, store, **choices) as service:
            await SwappedContexts(service, store).create(text, [n])


async def measure_split(
    thread: EngineThread, folder: Path, throttle: Throttle, n: int, split: str, rates: list[float], repeats: int
) -> list[dict[str, Any]]:
    """A row for each rate: seconds of the first switch and of the others, with a service that splits work so."""
    rows = []
    choices: dict[str, Any] = {"pool_bytes": POOL_BYTES, "split": split, **bit_settings(PRECISION)}
    with Store(folder, files=throttle.files) as store:
        async with serving(thread, store, **choices) as service:
            contexts = SwappedContexts(service, store)
            await contexts.reopen([n])
            cold = ColdSwitch(contexts, store, throttle, n)
            for rate in rates:
                first = await cold.seconds(rate)
                times = repeats if rate else 5 * repeats  # quick ones are noisy
                others = [await cold.seconds(rate) for _ in range(times)]
                rows.append({"first_s": sig(first), "s": sig(median(others)), "all_s": [sig(x) for x in others]})
                say(f"{split:16} {rate / 1e6:8.2f} MB/s  first {first:6.2f} s  then {others}")
    return rows


def measure(options: Options) -> Result:
    n, repeats, factors = (1024, 3, TIMES_QUICK) if options.quick else (4096, 3, TIMES_CROSSOVER)
    throttle = Throttle(options.folder)
    with engine(options) as thread:
        text = prose(thread.engine, n + SPARE, options.seed)
        folder = options.folder / "store"
        say(f"prefill of {n} tokens")
        asyncio.run(fill(thread, folder, text, n))
        coded = n // CHUNK_TOKENS * Codec(thread.engine.info.geometry).encoded_size(CHUNK_TOKENS, PRECISION)

        def run(split: str, rates: list[float], times: int) -> list[dict[str, Any]]:
            return asyncio.run(measure_split(thread, folder, throttle, n, split, rates, times))

        computed = run("recompute_first", [0.0], repeats)[0]
        crossover = coded / computed["s"]
        rates = [factor * crossover for factor in factors]
        read = run("load_first", rates, 1 if options.quick else repeats)
        both = run("balanced", rates, repeats)
        model = thread.engine.info.name
    throttle.close()
    rows = []
    for factor, rate, alone, together in zip(factors, rates, read, both, strict=True):
        best = min(alone["s"], computed["s"])
        row = {"times_crossover": factor, "bytes_per_s": int(rate), "read": alone, "balanced": together}
        rows.append({**row, "over_best": sig(together["s"] / best), "first_over_best": sig(together["first_s"] / best)})
    figures = {"tokens": n, "coded_bytes": coded, "throttle": throttle.how, "compute": computed, "rates": rows}
    return Result(model, figures, bars(rows))


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    at = {row["times_crossover"]: row["over_best"] for row in rows}
    return [
        Bar("balanced over the better of reading and computing, at the crossover", at[1.0], 1.0, True),
        Bar("the same, at the worst of the other rates", max(x for f, x in at.items() if f != 1.0), 1.1, True),
    ]


if __name__ == "__main__":
    sys.exit(main("swapin", __doc__ or "", measure))

"""Recompute or read: how long a context takes to come back, by its length, either way and as the planner chooses.

As in the evaluation of LLM-OS (B. E. Uerun, TU Munich 2025, slide 28), where recomputing wins up to about 2100 tokens
on an A40, since saving and loading costs 390 ms however short a context is. Here contexts of 128 .. 4096 tokens come
back by

* compute: from their tokens (``split="recompute_first"``);
* pool: from coded chunks in RAM;
* read: from coded chunks on DISK, files out of the page cache (``split="load_first"``);
* chosen: what the service does by itself (``split="balanced"``), from the same cold DISK.

The disk is as it is, and throttled so that reading a context of 1024 tokens takes half as long as computing it, as
long, and twice as long. ``crossover`` is the length from which reading beats computing on a disk: the shortest
one measured if it always does, null if it never does.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.lib.arrivals import crossing
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import serving
from bench.lib.engine import engine
from bench.lib.stats import sig
from bench.lib.swapped import POOL_BYTES, SPARE, SwappedContexts
from bench.lib.texts import prose
from bench.lib.throttle import Throttle
from bench.swapin import PRECISION, ColdSwitch
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.store import Store
from llmaas.planner.settings import bit_settings
from llmaas.records import CHUNK_TOKENS, Tier

TIMES = (0.0, 2.0, 1.0, 0.5)
"""Rates of the disk as multiples of that at which reading takes as long as computing; 0: not throttled."""
_EVEN_AT = 1024
"""Tokens of the context that takes as long to read as to compute, at the rate that is 1.0."""
_ENOUGH_S = 0.5
"""Seconds of switches after which no more are needed, if there were the asked number."""
LLM_OS = {"tokens": (128, 4096), "recompute_ms": (30, 1460), "load_ms": (390, 780), "crossover_tokens": 2100}
"""LLM-OS on an A40, read off its plot: both ends of its curves, and where they cross."""


class StoredContexts:
    """Contexts of all lengths in one store, brought back by services that split work between reading and computing.

    ``split`` is one of ``policies.split``'s names.
    """

    def __init__(self, thread: EngineThread, folder: Path, throttle: Throttle, lengths: Sequence[int]) -> None:
        self._thread, self._folder, self._throttle, self._lengths = thread, folder, throttle, list(lengths)

    @asynccontextmanager
    async def _opened(self, split: str) -> AsyncIterator[tuple[SwappedContexts, Store]]:
        choices: dict[str, Any] = {"pool_bytes": POOL_BYTES, "split": split, **bit_settings(PRECISION)}
        with Store(self._folder, files=self._throttle.files) as store:
            async with serving(self._thread, store, **choices) as service:
                yield SwappedContexts(service, store), store

    async def set_up(self, text: str) -> None:
        async with self._opened("balanced") as (contexts, _):
            await contexts.create(text, self._lengths)

    async def from_disk(self, split: str, rates: Sequence[float], repeats: int) -> dict[float, dict[int, list[float]]]:
        """Seconds, by rate and length. The first switch at a rate is left out: the service has not learned it yet."""
        found: dict[float, dict[int, list[float]]] = {}
        async with self._opened(split) as (contexts, store):
            await contexts.reopen(self._lengths)
            switches = {n: ColdSwitch(contexts, store, self._throttle, n) for n in self._lengths}
            for rate in rates:
                await switches[_EVEN_AT].seconds(rate)
                for n, switch in switches.items():
                    times = await several(switch, rate, repeats)
                    found.setdefault(rate, {})[n] = times
                    say(f"{split:16} {rate / 1e6:7.2f} MB/s {n:5} tokens {median(times) * 1e3:9.1f} ms")
        return found

    async def from_pool(self, repeats: int) -> dict[int, list[float]]:
        found = {}
        async with self._opened("balanced") as (contexts, _):
            await contexts.reopen(self._lengths)
            for n in self._lengths:
                row = await contexts.measure(n, Tier.POOL, cold=False, repeats=repeats, payload=self._folder)
                found[n] = [row["switch_ms"]["median"] / 1e3]
                say(f"pool {n:5} tokens {row['switch_ms']['median']:9.1f} ms")
        return found


async def several(switch: ColdSwitch, rate: float, repeats: int) -> list[float]:
    """Seconds of at least ``repeats`` switches; of more if they are short, because short ones vary more."""
    times: list[float] = []
    while len(times) < repeats or (sum(times) < _ENOUGH_S and len(times) < 5 * repeats):
        times.append(await switch.seconds(rate))
    return times


def rows(
    compute: dict[int, float], pool: dict[int, float], read: dict[int, float], chosen: dict[int, float]
) -> list[dict[str, Any]]:
    """Milliseconds by length on one disk; ``over_better``: chosen over the better of read and compute."""
    return [
        {
            "tokens": n,
            "compute_ms": sig(compute[n] * 1e3),
            "pool_ms": sig(pool[n] * 1e3),
            "read_ms": sig(read[n] * 1e3),
            "chosen_ms": sig(chosen[n] * 1e3),
            "over_better": sig(chosen[n] / min(read[n], compute[n])),
        }
        for n in compute
    ]


def crossover(rows: Sequence[dict[str, Any]]) -> float | None:
    """Tokens from which reading beats computing; None if it does not within the lengths measured."""
    at = [row["tokens"] for row in rows]
    found = crossing(at, [row["compute_ms"] for row in rows], [row["read_ms"] for row in rows])
    return None if found is None else sig(found)


def medians(times: dict[int, list[float]]) -> dict[int, float]:
    return {n: median(some) for n, some in times.items()}


def measure(options: Options) -> Result:
    lengths = (128, 512, 1024) if options.quick else (128, 256, 512, 1024, 2048, 4096)
    factors, repeats = ((0.0, 1.0), 2) if options.quick else (TIMES, 5)
    throttle = Throttle(options.folder)
    with engine(options) as thread:
        text = prose(thread.engine, lengths[-1] + SPARE, options.seed)
        stored = StoredContexts(thread, options.folder / "store", throttle, lengths)
        say(f"prefill of {lengths[-1]} tokens")
        asyncio.run(stored.set_up(text))
        compute = medians(asyncio.run(stored.from_disk("recompute_first", [0.0], 1 if options.quick else 3))[0.0])
        pool = medians(asyncio.run(stored.from_pool(5 if options.quick else 11)))
        coded = _EVEN_AT // CHUNK_TOKENS * Codec(thread.engine.info.geometry).encoded_size(CHUNK_TOKENS, PRECISION)
        rates = [factor * coded / compute[_EVEN_AT] for factor in factors]
        read = asyncio.run(stored.from_disk("load_first", rates, repeats))
        chosen = asyncio.run(stored.from_disk("balanced", rates, repeats))
        model = thread.engine.info.name
    throttle.close()
    disks = []
    for factor, rate in zip(factors, rates, strict=True):
        found = rows(compute, pool, medians(read[rate]), medians(chosen[rate]))
        disks.append({"times_even": factor, "bytes_per_s": int(rate), "rows": found, "crossover": crossover(found)})
        say(f"at {factor} times the even rate, reading beats computing from {disks[-1]['crossover']} tokens on")
    figures = {"even_at_tokens": _EVEN_AT, "throttle": throttle.how, "disks": disks, "llm_os": LLM_OS}
    return Result(model, figures, bars(disks))


def bars(disks: Sequence[dict[str, Any]]) -> list[Bar]:
    return [
        Bar(
            f"disk at {disk['times_even'] or 'its own'} times the even rate: chosen over the better way, at worst",
            max(row["over_better"] for row in disk["rows"]),
            1.15,
            True,
        )
        for disk in disks
    ]


if __name__ == "__main__":
    sys.exit(main("crossover", __doc__ or "", measure))

"""How long llmaas' own products and attention take for the tokens of a step, against llama.cpp's.

Steps of so many tokens behind so many others of the same context, in an engine of this process, by each level that the
CPU has (``engine/llama/tiles.py``) in turns. ``beside``: the same with as many cells of another context.
"""

from __future__ import annotations

import random
import sys
from itertools import product
from statistics import median
from time import perf_counter
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.engine import N_BATCH, engine
from bench.lib.stats import sig
from llmaas.engine.base import BatchItem, Engine
from llmaas.engine.llama.tiles import LEVELS, use
from llmaas.engine.thread import EngineThread

HELD, NEW, BESIDE = 900, (1, 2, 4, 8, 24, 63, 100, 400, 750), 2000
CELLS = 4096


def feed(e: Engine, seq: int, tokens: list[int]) -> None:
    for at in range(0, len(tokens), N_BATCH):
        e.step([BatchItem(seq, e.length(seq), tokens[at : at + N_BATCH])])


def by_level(e: Engine, tokens: list[int], held: int, rounds: int, levels: list[int]) -> dict[str, float]:
    """Median milliseconds of ``tokens`` behind what the first sequence holds."""
    times: dict[int, list[float]] = {level: [] for level in levels}
    for _, level in product(range(rounds), levels):
        use(level)
        began = perf_counter()
        feed(e, 0, tokens)
        times[level].append((perf_counter() - began) * 1e3)
        e.drop(0, held)
    return {LEVELS[level]: sig(median(found)) for level, found in times.items()}


def run(thread: EngineThread, options: Options) -> dict[str, Any]:
    e, rng = thread.engine, random.Random(options.seed)
    text = [rng.randrange(1000, 30000) for _ in range(HELD + NEW[-1] + BESIDE)]
    levels = [level for level in range(len(LEVELS)) if use(level) == level]
    rounds, found = 3 if options.quick else 9, {}
    for held, beside in ((0, 0), (HELD, 0), (HELD, BESIDE)):
        for seq, n in ((0, held), (1, beside)):
            e.drop(seq, 0)
            feed(e, seq, text[:n])
        for n in NEW[:: 2 if options.quick else 1]:
            place = f"{n} behind {held}" + f" beside {beside}" * bool(beside)
            found[place] = by_level(e, text[held : held + n], held, rounds, levels)
            say(f"{place}: {found[place]}")
    use(levels[-1])
    return {"ms": found}


def measure(options: Options) -> Result:
    with engine(options, CELLS) as thread:
        figures = thread.submit(run, thread, options).result()
        name = thread.engine.info.name
    figures["gain"] = {}
    for place, times in figures["ms"].items():
        ours, theirs = list(times.values())[-1], times[LEVELS[0]]
        figures["gain"][place] = sig(theirs / ours)
    several = {place: gain for place, gain in figures["gain"].items() if not place.startswith(("1 ", "2 "))}
    return Result(name, figures, [Bar("a step of 4 tokens or more, llama.cpp / llmaas", min(several.values()), 1.0)])


if __name__ == "__main__":
    sys.exit(main("tiles", __doc__ or "", measure))

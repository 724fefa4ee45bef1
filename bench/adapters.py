"""What LoRA adapters cost the engine: to load, to compute with, and to change between two steps.

There are two random adapters of rank 8 on every linear weight of SmolLM2-135M (9.8 MB as float32 each); what is in them
does not change what is measured. Steps of one token of one sequence follow one another in five ways, which alternate:

* bare: the bare model;
* one: one adapter throughout;
* two: two adapters that alternate at every step;
* on_and_off: an adapter and the bare model, alternately;
* bare_again: the bare model once more: its difference from ``bare`` is the noise of this measurement.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from bench.lib.adapter_files import ALL_OF_SMOLLM2, write_gguf
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.engine import engine
from bench.lib.stats import sig, summary
from bench.lib.texts import prose
from llmaas.engine.base import BatchItem, Engine
from llmaas.engine.thread import EngineThread

WAYS = {"bare": ("", ""), "one": ("a", "a"), "two": ("a", "b"), "on_and_off": ("a", ""), "bare_again": ("", "")}
PROMPT = 512


def load_ms(e: Engine, options: Options, n: int) -> dict[str, list[float]]:
    """Milliseconds, ``n`` times, to load an adapter, of the first step with it, of the second, and to unload it.

    The file is in the page cache.
    """
    path = options.folder / "a"
    work: dict[str, Callable[[], None]] = {
        "load": lambda: e.load_adapter("x", path),
        "first_step": lambda: step(e, "x"),
        "second_step": lambda: step(e, "x"),
        "unload": lambda: e.unload_adapter("x"),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(n):
        step(e, "")
        for name, do in work.items():
            began = perf_counter()
            do()
            times[name].append((perf_counter() - began) * 1e3)
    return times


def step(e: Engine, adapter: str) -> None:
    e.step([BatchItem(0, e.length(0), [1])], adapter)


def step_ms(e: Engine, rounds: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds of a step, the mean of each round, for each way."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, adapters in WAYS.items():
            e.drop(0, PROMPT)
            step(e, adapters[1])
            began = perf_counter()
            for i in range(steps):
                step(e, adapters[i % 2])
            times[way].append((perf_counter() - began) * 1e3 / steps)
    return times


def run(thread: EngineThread, options: Options) -> dict[str, Any]:
    e = thread.engine
    e.step([BatchItem(0, 0, e.tokenize(prose(e, PROMPT + 50, options.seed), special=False, bos=False)[:PROMPT])])
    loads = load_ms(e, options, 5 if options.quick else 30)
    for name in "ab":
        e.load_adapter(name, options.folder / name)
    steps = step_ms(e, 5 if options.quick else 20, 16)
    bare = median(steps["bare"])
    return {
        "file_bytes": (options.folder / "a").stat().st_size,
        "load_ms": {name: summary(times) for name, times in loads.items()},
        "step_ms": {way: summary(times) for way, times in steps.items()},
        "compute_share": sig(median(a / b for a, b in zip(steps["one"], steps["bare"], strict=True)) - 1),
        "change_ms": sig(median(a - b for a, b in zip(steps["two"], steps["one"], strict=True))),
        "noise_ms": sig(median(abs(a - b) for a, b in zip(steps["bare_again"], steps["bare"], strict=True))),
        "load_in_steps": sig(median(loads["load"]) / bare),
        "change_in_steps": sig(median((a - b) / b for a, b in zip(steps["two"], steps["one"], strict=True))),
    }


def measure(options: Options) -> Result:
    for seed, name in enumerate("ab"):
        write_gguf(options.folder / name, seed, weights=ALL_OF_SMOLLM2, rank=8)
    with engine(options) as thread:
        if "smollm2" not in thread.engine.info.name.lower():
            raise SystemExit("the adapters of this bench are made for SmolLM2-135M")
        figures = thread.submit(run, thread, options).result()
        name = thread.engine.info.name
    for what in ("compute_share", "change_ms", "change_in_steps", "load_in_steps"):
        say(f"{what}: {figures[what]}")
    bars = [
        Bar("decode with an adapter, against the bare model: slower by", figures["compute_share"], 0.5, at_most=True),
        Bar("a change of adapters, in decode steps", figures["change_in_steps"], 2.0, at_most=True),
        Bar("a load, in decode steps", figures["load_in_steps"], 10.0, at_most=True),
    ]
    return Result(name, figures, bars)


if __name__ == "__main__":
    sys.exit(main("adapters", __doc__ or "", measure))

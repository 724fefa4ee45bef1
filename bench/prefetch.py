"""What is gained by bringing a context back before it is called, by its app's hint or by a guess.

72-hour traces (bench/policies.py says which) are replayed through the shipped planner, in virtual time, in four ways:

* without hints and guesses;
* with a hint two seconds before each call, as an app gives it when it comes to the foreground;
* with guesses between calls, by a Markov chain over the calls so far, from a confidence of 0.3 on, and of 0.6 on.

Reported are how long a switch takes, how many guesses were right, and the tokens that hints and guesses moved.
"""

from __future__ import annotations

import sys
from multiprocessing import Pool
from typing import Any

import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.stats import sig
from bench.policies import Case, prepare
from llmaas.policies.eviction import DEFAULT_EVICTION
from llmaas.replay.simulator import Replay

WAYS: dict[str, dict[str, float]] = {
    "none": {},
    "hint 2 s before": {"hint_s": 2.0},
    "guess from 0.3": {"guess_from": 0.3},
    "guess from 0.6": {"guess_from": 0.6},
}
PATTERNS = ("random", "markov", "gaussian", "turns", "phone")
PLACES = (("ufs4", "phone", "0.5B"), ("emmc", "board", "1B"), ("sd", "board", "1B"))
CONTEXTS = 16


def run(case: tuple[str, tuple[str, str, str], str, int]) -> dict[str, Any]:
    pattern, (device, machine, name), way, seed = case
    place = Case(DEFAULT_EVICTION, pattern, CONTEXTS, 0.25, device, machine, name)
    trace, settings, prices = prepare(place, seed)
    report = Replay(settings, prices, **WAYS[way]).run(trace)  # type: ignore[arg-type]
    assert not report.problems, report.problems
    waits = [call.switch_s * 1e3 for call in report.calls if sum(call.sources)]
    hints = report.hints
    return {
        "pattern": pattern,
        "device": device,
        "machine": machine,
        "model": name,
        "way": way,
        "mean_ms": sig(float(np.mean(waits))),
        "p99_ms": sig(float(np.percentile(waits, 99))),
        "calls": len(report.calls),
        "guesses": hints.guesses,
        "right": sig(hints.right / hints.guesses) if hints.guesses else None,
        "tokens_moved_per_call": sig(hints.tokens_moved / len(report.calls)),
    }


def measure(options: Options) -> Result:
    places = PLACES[:1] if options.quick else PLACES
    cases = [(p, place, way, options.seed) for place in places for p in PATTERNS for way in WAYS]
    with Pool(min(2, options.threads)) as workers:
        options.kept.expect(len(cases))
        waiting = {str(case): workers.apply_async(run, (case,)) for case in cases if not options.has(str(case))}
        rows = [options.step(str(case), lambda case=case: waiting[str(case)].get()) for case in cases]  # type: ignore[misc]
    base = {(r["pattern"], r["device"]): r["mean_ms"] for r in rows if r["way"] == "none"}
    for row in rows:
        row["over_none"] = sig(row["mean_ms"] / base[row["pattern"], row["device"]])
        say(
            f"{row['pattern']:9} {row['device']:5} {row['way']:16} {row['mean_ms']:8} ms  x{row['over_none']}"
            f"  p99 {row['p99_ms']}  right {row['right']} of {row['guesses']}"
            f"  tokens moved a call {row['tokens_moved_per_call']}"
        )
    worst = max(row["over_none"] for row in rows if row["way"].startswith("hint"))
    return Result(
        "none: replay", {"rows": rows}, [Bar("mean switch with hints over that without, worst trace", worst, 0.3, True)]
    )


if __name__ == "__main__":
    sys.exit(main("prefetch", __doc__ or "", measure))

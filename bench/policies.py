"""Which eviction policy is to be the default: replays of 72-hour traces, in virtual time.

There is no model and no disk: the planner decides as it does in the daemon, and times come from the prices of
``llmaas.replay.prices``. Four grids of replays over LLMS' switching patterns and a semi-synthetic phone
(``llmaas.traces``):

* ``policies``: every policy and both bounds, by pattern, number of contexts and part of all chunks that the POOL holds;
* ``devices``: the daemon's policies over storage devices and models;
* ``slow``: where a context takes more than twice as long to come from DISK as from the POOL, the daemon's policies and
  the bound that knows the future;
* ``held``: LLMS' figure, the most contexts for which the mean switch takes at most 10 or 25 ms, by bytes of the POOL.

A switch counts if the context had KV. Its milliseconds are those from admission until all of that KV is in CELLS. Calls
run one at a time, so that no switch waits for another call's prefill.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.stats import sig
from llmaas.kvchunks.codec.codec import Codec
from llmaas.planner.settings import PlannerSettings, bit_settings
from llmaas.policies.eviction import DEFAULT_EVICTION, EVICTION
from llmaas.records import CHUNK_TOKENS, Precision
from llmaas.replay.bounds import belady, unbounded
from llmaas.replay.prices import DEVICES, MODELS, Costs, costs
from llmaas.replay.report import ReplayReport
from llmaas.replay.simulator import Replay
from llmaas.traces import phone, switching
from llmaas.traces.call import TraceCall

BITS = Precision(4, 4)
BOUNDS = {"belady": belady, "unbounded": unbounded}
MEAN_TOKENS = 2048
"""Tokens of a context, over its life: it grows to 4096, then a new conversation begins."""
HELD = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MEANS_MS = (10.0, 25.0)
PHONE_HOURS = 14 * 24.0
"""Longer than 72 hours, for enough calls: a phone asks less often than once in five minutes."""


@dataclass(frozen=True, slots=True)
class Case:
    """One replay. The POOL holds ``part`` of the bytes of ``contexts`` mean contexts, or ``pool_bytes`` if not 0."""

    policy: str
    pattern: str
    contexts: int
    part: float
    device: str = "ufs4"
    machine: str = "phone"
    model: str = "0.5B"
    pool_bytes: int = 0


def prepare(case: Case, seed: int) -> tuple[list[TraceCall], PlannerSettings, Costs]:
    """The trace of a case, the planner's settings and the prices."""
    model = MODELS[case.model]
    if case.pattern == "phone":
        calls = phone.make(seed, limit=model.ctx_limit, hours=PHONE_HOURS)
    else:
        calls = switching.make(case.pattern, case.contexts, limit=model.ctx_limit, seed=seed)
    token = Codec(model.geometry).encoded_size(CHUNK_TOKENS, BITS) / CHUNK_TOKENS
    settings = PlannerSettings(
        n_cells=2 * model.ctx_limit,
        n_seqs=32,
        pool_bytes=case.pool_bytes or int(case.part * case.contexts * MEAN_TOKENS * token),
        ctx_limit=model.ctx_limit,
        geometry=model.geometry,
        **bit_settings(BITS),
        max_running=1,
        wear="eager",  # so that the POOL has nothing that leaves it last whatever the policy
    )
    return list(calls), settings, costs(case.device, case.machine, case.model)


def run(case: Case, seed: int) -> dict[str, Any]:
    trace, settings, prices = prepare(case, seed)
    if case.policy in BOUNDS:
        report = BOUNDS[case.policy](trace, settings, prices)
    else:
        report = Replay(replace(settings, eviction=case.policy), prices).run(trace)
    assert not report.problems, report.problems
    return _figures(case, settings.pool_bytes, report)


def _figures(case: Case, pool_bytes: int, report: ReplayReport) -> dict[str, Any]:
    back = [call for call in report.calls if sum(call.sources)]
    ms = [call.switch_s * 1e3 for call in back]
    tokens = np.sum([call.sources for call in back], axis=0)
    cells, pool, disk, none = (sig(float(part)) for part in tokens / tokens.sum())
    return {
        "policy": case.policy,
        "pattern": case.pattern,
        "contexts": case.contexts,
        "device": case.device,
        "machine": case.machine,
        "model": case.model,
        "pool_bytes": pool_bytes,
        "part": case.part,
        "disk_over_pool": sig(disk_over_pool(case)),
        "switches": len(ms),
        "mean_ms": sig(float(np.mean(ms))),
        "p50_ms": sig(float(np.percentile(ms, 50))),
        "p99_ms": sig(float(np.percentile(ms, 99))),
        "from": {"cells": cells, "pool": pool, "disk": disk, "recomputed": none},
        "bytes_written": report.tally.bytes_written,
    }


def disk_over_pool(case: Case) -> float:
    """How many times as long a mean context takes to come from DISK as from the POOL."""
    geometry, prices = MODELS[case.model].geometry, costs(case.device, case.machine, case.model)
    coded = MEAN_TOKENS // CHUNK_TOKENS * Codec(geometry).encoded_size(CHUNK_TOKENS, BITS)
    place = prices.place(coded, MEAN_TOKENS * geometry.token_bytes)
    return (prices.read(coded) + place) / place


def grid_policies(quick: bool) -> Iterator[Case]:
    places = [(pattern, n) for pattern in switching.PATTERNS for n in ((16,) if quick else (4, 8, 16, 32, 64))]
    places.append(("phone", phone.APPS))
    for pattern, n in places:
        for part in (0.25,) if quick else (0.125, 0.25, 0.5):
            for policy in (*EVICTION, *BOUNDS):
                yield Case(policy, pattern, n, part)


def grid_devices(quick: bool) -> Iterator[Case]:
    for device in ("emmc", "hdd") if quick else DEVICES:
        for model in ("1B",) if quick else MODELS:
            for pattern, n in (("markov", 16), ("phone", phone.APPS)):
                for policy in EVICTION:
                    yield Case(
                        policy, pattern, n, 0.25, device, "board" if device in ("sd", "emmc") else "phone", model
                    )


def grid_slow(quick: bool) -> Iterator[Case]:
    places = [(pattern, n) for pattern in switching.PATTERNS for n in ((16,) if quick else (8, 16, 32))]
    for device in ("sd",) if quick else ("emmc", "sd"):
        for pattern, n in [*places, ("phone", phone.APPS)]:
            for part in (0.25,) if quick else (0.25, 0.5):
                for policy in (*EVICTION, "belady"):
                    yield Case(policy, pattern, n, part, device)


def grid_held(quick: bool) -> Iterator[Case]:
    for pattern in ("markov",) if quick else switching.PATTERNS:
        for pool in (32 << 20,) if quick else (16 << 20, 32 << 20, 64 << 20):
            for n in HELD[1::2] if quick else HELD:
                for policy in EVICTION:
                    yield Case(policy, pattern, n, 0.0, "emmc", pool_bytes=pool)


def held(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The most contexts with a mean switch of at most each of MEANS_MS, with which all smaller numbers comply too."""
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in rows:
        key = row["pattern"], row["pool_bytes"], row["policy"]
        line = found.setdefault(key, dict(zip(("pattern", "pool_bytes", "policy"), key, strict=True)) | {"means": []})
        line["means"].append((row["contexts"], row["mean_ms"]))
    for line in found.values():
        for bound in MEANS_MS:
            most = 0
            for n, mean in sorted(line["means"]):
                if mean > bound:
                    break
                most = n
            line[f"held_{bound:g}_ms"] = most
    return list(found.values())


GRIDS = {"policies": grid_policies, "devices": grid_devices, "slow": grid_slow, "held": grid_held}
_SLOW, _GAIN = 2.0, 0.97
"""Where DISK costs so many times the POOL, the mean switch is to be so much of LRU's at most."""


def measure(options: Options, grids: Sequence[str]) -> Result:
    figures: dict[str, Any] = {}
    for name in grids:
        cases = list(GRIDS[name](options.quick))
        say(f"{name}: {len(cases)} replays")
        figures[name] = replays(cases, options)
    bars: list[Bar] = []
    if "held" in figures:
        figures["held"] = held(figures["held"])
    if rows := figures.get("policies", []) + figures.get("devices", []):
        figures["summary"] = summary = _summary(rows)
        ours = summary[DEFAULT_EVICTION]["mean_all"]
        for name in (name for name in EVICTION if name != DEFAULT_EVICTION):
            bars.append(Bar(f"mean switch, {name} / {DEFAULT_EVICTION}", summary[name]["mean_all"] / ours, 1.0))
    if "slow" in figures:
        figures["slow_summary"] = _summary([row for row in figures["slow"] if row["disk_over_pool"] > _SLOW])
        ours = figures["slow_summary"][DEFAULT_EVICTION]["mean_all"]
        bars.append(Bar(f"mean switch where DISK costs {_SLOW:g} times POOL, over lru's", ours, _GAIN, at_most=True))
    return Result("none: replay", figures, bars)


def _grids(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in GRIDS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(GRIDS)}")
    return names


def replays(cases: list[Case], options: Options) -> list[dict[str, Any]]:
    """The rows of the cases, kept one by one as they come."""
    names = [f"seed {options.seed}: {case}" for case in cases]
    todo = [(name, case) for name, case in zip(names, cases, strict=True) if options.kept.find(name) is None]
    options.kept.expect(len(todo))
    if todo:  # a pool that is ended before it has done anything may hang
        with Pool(min(2, options.threads)) as workers:
            begin = time.monotonic()
            rows = workers.imap(partial(run, seed=options.seed), [case for _, case in todo], chunksize=1)
            for (name, _), row in zip(todo, rows, strict=True):
                now = time.monotonic()
                options.kept.put(name, row, now - begin)
                begin = now
    found = [options.kept.find(name) for name in names]
    return [row[0] for row in found if row is not None]  # type: ignore[misc]


_PLACE = ("pattern", "contexts", "device", "model", "pool_bytes")
"""What the rows of one place have in common, whatever the policy."""
Place = tuple[Any, ...]


def _place(row: dict[str, Any]) -> Place:
    return tuple(row[name] for name in _PLACE)


def _summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By policy and pattern ("all": all patterns), relative to lru in the same places.

    ``mean``: mean switches, geometric mean over places. ``disk``: the part of tokens from DISK, summed over places.
    A place does not count if a policy recomputed something there, because recomputing one chunk outweighs all that
    eviction does; nor if everything was in CELLS.
    """
    lru = {_place(row): row for row in rows if row["policy"] == "lru"}
    recomputing = {_place(row) for row in rows if row["from"]["recomputed"]}
    found: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for row in rows:
        base = lru[_place(row)]
        if not base["mean_ms"] or _place(row) in recomputing:
            continue
        relative = row["mean_ms"] / base["mean_ms"], row["from"]["disk"], base["from"]["disk"]
        for pattern in ("all", row["pattern"]):
            found.setdefault(row["policy"], {}).setdefault(pattern, []).append(relative)
    return {policy: _relative_to_lru(patterns) for policy, patterns in found.items()}


def _relative_to_lru(patterns: dict[str, list[tuple[float, float, float]]]) -> dict[str, float]:
    """One policy's part of the summary, from (mean over lru's, from DISK, lru's from DISK) of each place."""
    figures = {}
    for pattern, places in patterns.items():
        means, disk, lru_disk = zip(*places, strict=True)
        figures[f"mean_{pattern}"] = sig(float(np.exp(np.mean(np.log(means)))))
        figures[f"disk_{pattern}"] = sig(sum(disk) / max(sum(lru_disk), 1e-9))
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument("--grid", type=_grids, default=list(GRIDS), metavar="G,...", help=f"of {', '.join(GRIDS)}")
    given, sys.argv[1:] = parser.parse_known_args()  # what is left are the options of all benches
    about = f"{__doc__}\nOptions of this bench:\n{parser.format_help()}"
    sys.exit(main(Path(__file__).stem, about.strip(), partial(measure, grids=given.grid)))

"""How soon a model is there: from a file that is not in memory, from one that is, after it was parked, and held.

Each load is a process of its own, which ends with its first token; ways take turns, and before a cold load the file is
put out of the page cache, which is verified. Beside llmaas there is llama.cpp as it comes. ``rate`` is what the disk
delivers of the whole file to several threads, in a run of its own; ``fixed`` is a load of ours with the file in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.load_once import share_of
from bench.lib.machine import ROOT
from bench.lib.probes import forget
from bench.lib.stats import sig
from llmaas.config.models import parts_of
from llmaas.model_files.gguf import examine_files
from llmaas.model_files.load_memo import LoadMemo
from llmaas.model_files.reads import FileReads

WITHIN, QUICKER_COLD, QUICKER_WARM, BACK_S = 1.25, 1.4, 1.8, 0.5
"""The cold load against size / rate + fixed; against llama.cpp's, cold and warm; coming back beside the reads."""
_COLD = 0.01
_LEAST = 256 << 20
"""Bytes of a file below which fixed costs are all there is: no bars for it."""


def evict(model: Path) -> None:
    """Put the model's files out of the page cache. Raises RuntimeError if they stay."""
    for part in parts_of(model):
        forget(part)
    if share_of(model) > _COLD:
        raise RuntimeError(f"{model} stays in the page cache: does another process use it?")


def load(options: Options, way: str, *, cold: bool) -> dict[str, Any]:
    evict(options.model)
    if not cold:
        for part in parts_of(options.model):
            with part.open("rb") as file:
                while file.read(1 << 22):
                    pass
    command = [sys.executable, "-m", "bench.lib.load_once", way, str(options.model), str(options.threads)]
    done = subprocess.run(
        [*command, str(options.folder / "loads.json")],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    share = found["resident_before"]
    if (share > _COLD) if cold else (0 <= share < 1 - _COLD):
        raise RuntimeError(f"{share:.0%} of the file was in memory before a {'cold' if cold else 'warm'} load")
    return found


def read_seconds(options: Options) -> float:
    """Seconds that reading all of the model from the disk takes, in the way that was learned for it."""
    evict(options.model)
    reads = FileReads(parts_of(options.model), LoadMemo(options.folder / "loads.json"))
    began = monotonic()
    reads.start()
    reads.wait()
    return monotonic() - began


def measure(options: Options) -> Result:
    facts, size = examine_files(options.model)
    rounds = 2 if options.quick else 5
    found: dict[str, list[float]] = {}
    parked: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    read_seconds(options)  # this one tries out how the disk is read best
    for i in range(rounds):
        found.setdefault("read", []).append(read_seconds(options))
        for name, way, cold in (
            ("bare_cold", "bare", True),
            ("ours_cold", "ours", True),
            ("bare_warm", "bare", False),
            ("ours_warm", "ours", False),
        ):
            found.setdefault(name, []).append(load(options, way, cold=cold)["seconds"])
        parked.append(load(options, "parked", cold=False))
        held.append(load(options, "held", cold=False))
        say(f"round {i + 1}: {', '.join(f'{name} {values[-1]:.2f} s' for name, values in found.items())}")
        say(f"         parked and back {parked[-1]['back']:.2f} s, held {held[-1]['back']:.2f} s")
    return _result(facts.title or options.model.stem, size, found, parked, held)


def _held(held: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Bar]]:
    """Of a model whose pages are locked. Without the right to lock them there is nothing to measure."""
    if not all(each["held"] for each in held):
        say("the model's pages cannot be locked in RAM here (ulimit -l): nothing is said of models that are held")
        return {"allowed": False}, []
    back, least = median(each["back"] for each in held), min(each["resident_parked"] for each in held)
    figures = {"allowed": True, "back_s": sig(back), "least_resident": least}
    return figures, [
        Bar("held and wanted, when the system has asked for its pages (s)", back, BACK_S, at_most=True),
        Bar("part of a held model that is in RAM then", least, 1 - _COLD),
    ]


def _result(
    title: str, size: int, found: dict[str, list[float]], parked: list[dict[str, Any]], held: list[dict[str, Any]]
) -> Result:
    held_figures, held_bars = _held(held)
    best, middle = {name: min(values) for name, values in found.items()}, {n: median(v) for n, v in found.items()}
    back = median(each["back"] for each in parked)
    # Ratios are taken within a round: what else the machine does is not the same in all.
    within = median(
        cold / (read + warm)
        for cold, read, warm in zip(found["ours_cold"], found["read"], found["ours_warm"], strict=True)
    )
    cold = median(bare / ours for bare, ours in zip(found["bare_cold"], found["ours_cold"], strict=True))
    warm = median(bare / ours for bare, ours in zip(found["bare_warm"], found["ours_warm"], strict=True))
    beside = median(each["back"] - read for each, read in zip(parked, found["read"], strict=True))
    figures = {
        "bytes": size,
        "rate_mb_s": sig(size / middle["read"] / 1e6),
        "median_s": {name: sig(value) for name, value in middle.items()},
        "best_s": {name: sig(value) for name, value in best.items()},
        "parked": {
            "parking_s": sig(median(each["parking"] for each in parked)),
            "back_s": sig(back),
            "beside_reads_s": sig(beside),
            "resident": max(each["resident_parked"] for each in parked),
            "rss_mb": sig(median(each["rss_parked"] for each in parked) / 1e6),
        },
        "held": held_figures,
        "cold_against_floor": sig(within),
        "cold_gain": sig(cold),
        "warm_gain": sig(warm),
    }
    bars = [
        Bar("cold file to first token, against size / read rate + fixed part", within, WITHIN, at_most=True),
        Bar("cold: llama.cpp as it comes, against ours", cold, QUICKER_COLD),
        Bar("warm: llama.cpp as it comes, against ours", warm, QUICKER_WARM),
        Bar("parked and back, beside the reads (s)", beside, BACK_S, at_most=True),
        *held_bars,
    ]
    return Result(title, figures, bars if size >= _LEAST else [])


if __name__ == "__main__":
    sys.exit(main("models", __doc__ or "", measure))

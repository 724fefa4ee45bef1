"""The experiments of LLMS (arXiv 2403.11805) with this planner, for Llama-2-7B on the paper's three devices.

Virtual time: the planner decides as in the daemon, prices are those of ``llmaas.replay.prices``. The rate of computing
on the Xiaomi 14 is the paper's (4096 tokens in 22.92 s); those of the two Jetsons are of data sheets; disks are a NVMe,
a SATA hard disk and UFS 4.0, as there. Traces are ours, made as the paper describes its own.

* ``mean``: the mean switch of 8 contexts, by pattern, for the service and for what the paper compares with, built of
  the same parts: LMK (kill, compute anew), Swapping (whole contexts), VLLM-S (chunks), VLLM-SQ (chunks of 8 bits);
* ``ablation``: the service without one of its parts;
* ``held``: the most contexts with a mean switch of at most 10 or 25 ms, for 1, 2 and 3 GB.

Bytes of memory are those of the POOL. The paper computes on 8-bit KV where it lies. The service computes on f16 in
CELLS, 2 GiB for the 4096 tokens of the longest context, which come on top, and decodes what comes from the POOL. All
chunks are coded at 4 bits, the mean that the paper has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib.cli import Options, Result, main
from bench.lib.stats import sig
from llmaas.planner.settings import PlannerSettings, bit_settings
from llmaas.records import LOSSLESS, NO_QUOTA, Precision
from llmaas.replay.prices import MODELS, costs
from llmaas.replay.simulator import Replay
from llmaas.traces import switching

MODEL = "llama-2-7b"
DEVICES = {"Jetson Orin NX": ("nvme", "orin-nx"), "Jetson TX2": ("hdd", "tx2"), "Xiaomi 14": ("ufs4", "phone-npu")}
"""The paper's devices: storage and machine of ``llmaas.replay.prices``."""
GIB = 1 << 30
HELD = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
BOUNDS_MS = (10.0, 25.0)
_LIMIT = 4096
_TINY = 32 << 20
"""A POOL through which chunks only pass."""
_EIGHT: dict[str, Any] = {**bit_settings(Precision(8, 8))}
_LRU: dict[str, Any] = {"eviction": "lru", "wear": "eager", "split": "load_first"}
WAYS: dict[str, dict[str, Any]] = {
    "llmaas": {},
    "LMK": {"eviction": "lru", "split": "recompute_first", "disk_bytes": 0, "pool_bytes": _TINY, **_EIGHT},
    "Swapping": {**_LRU, "pool_bytes": _TINY, **bit_settings(LOSSLESS)},
    "VLLM-S": {**_LRU, **bit_settings(LOSSLESS)},
    "VLLM-SQ": {**_LRU, **_EIGHT},
}
ABLATION: dict[str, dict[str, Any]] = {
    "all parts": {},
    "without compression below 8 bits": _EIGHT,
    "without writing ahead, LRU": {"wear": "late", "eviction": "lru"},
    "without computing beside reading": {"split": "load_first"},
}


@dataclass(frozen=True, slots=True)
class Case:
    device: str
    pattern: str
    contexts: int
    pool_bytes: int
    way: str
    hours: float = switching.HOURS


def settings_for(case: Case, choices: dict[str, Any]) -> PlannerSettings:
    base = PlannerSettings(
        n_cells=_LIMIT,
        n_seqs=32,
        pool_bytes=case.pool_bytes,
        disk_bytes=NO_QUOTA,
        ctx_limit=_LIMIT,
        geometry=MODELS[MODEL].geometry,
        **bit_settings(Precision(4, 4)),
        max_running=1,
        save_batch=1,
    )
    return replace(base, **choices)


def mean_ms(case: Case, choices: dict[str, Any], seed: int) -> float:
    """The mean over the switches of a trace, contexts that are still in CELLS included."""
    trace = list(switching.make(case.pattern, case.contexts, limit=_LIMIT, seed=seed, hours=case.hours))
    report = Replay(settings_for(case, choices), costs(*DEVICES[case.device], MODEL)).run(trace)
    assert not report.problems, report.problems
    return sig(float(np.mean([call.switch_s * 1e3 for call in report.calls if sum(call.sources)])))


def means(options: Options) -> Iterator[dict[str, Any]]:
    for device in DEVICES:
        for pattern in ("markov",) if options.quick else ("random", "markov", "gaussian"):
            for way, choices in WAYS.items():
                case = Case(device, pattern, 8, 2 * GIB, way)
                ms = options.step(f"{case}", lambda case=case, choices=choices: mean_ms(case, choices, options.seed))  # type: ignore[misc]
                yield {"device": device, "pattern": pattern, "way": way, "mean_ms": ms}


def ablation(options: Options) -> Iterator[dict[str, Any]]:
    for way, choices in ABLATION.items():
        case = Case("Jetson Orin NX", "markov", 8, 2 * GIB, way)
        ms = options.step(f"{case}", lambda case=case, choices=choices: mean_ms(case, choices, options.seed))  # type: ignore[misc]
        yield {"device": case.device, "way": way, "mean_ms": ms}


def held(options: Options) -> Iterator[dict[str, Any]]:
    """The most contexts with a mean of at most each bound, with which all smaller numbers comply too."""
    for device in DEVICES:
        for gigabytes in (1, 3) if options.quick else (1, 2, 3):
            most = dict.fromkeys(BOUNDS_MS, 0)
            for n in HELD:
                case = Case(device, "markov", n, gigabytes * GIB, "held")
                ms = options.step(f"{case}", lambda case=case: mean_ms(case, {}, options.seed))  # type: ignore[misc]
                within = [bound for bound in BOUNDS_MS if ms <= bound and most[bound] == before(n)]
                most |= dict.fromkeys(within, n)
                if not within:
                    break
            yield {"device": device, "gb": gigabytes, **{f"at_{bound:g}_ms": n for bound, n in most.items()}}


def before(n: int) -> int:
    """The number of contexts that is tried before ``n``."""
    smaller: Sequence[int] = [m for m in HELD if m < n]
    return smaller[-1] if smaller else 0


def measure(options: Options) -> Result:
    figures = {"mean": list(means(options)), "ablation": list(ablation(options)), "held": list(held(options))}
    return Result(f"{MODEL}, virtual time", figures, [])


if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem, (__doc__ or "").strip(), measure))

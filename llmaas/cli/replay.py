"""``llmaas replay``: a trace of calls, run through the planner in virtual time.

Law: the planner that serves decides; no model, no daemon and no file but the trace is touched.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.cli.options import add_settings, configured
from llmaas.cli.out import human_bytes, print_json, table
from llmaas.errors import BadRequest
from llmaas.policies.eviction import DEFAULT_EVICTION, EVICTION
from llmaas.policies.scheduling import DEFAULT_SCHEDULING, SCHEDULING
from llmaas.replay.prices import DEVICES, MACHINES, MODELS

if TYPE_CHECKING:
    from llmaas.replay.simulator import ReplayReport

_SETTINGS = [
    "cells",
    "pool_bytes",
    "disk_bytes",
    "sequences",
    "bits",
    "prefill_slice",
    "max_running",
    "step_ms",
    "quantum",
    "ageing",
    "rate",
    "app_rate",
]
_EPILOG = """\
A trace has one JSON object a line: at second t a context gets prompt tokens and generates some.
  {"t": 12.5, "app": "mail", "context": "inbox", "prompt": 80, "generate": 40}
It may also have a "priority" (0 to 9), a "deadline_s" and a "rate", as calls have.

Prices are those of SmolLM2-135M on two x86 cores with a fast disk, unless a device, a machine or a model is named
(their figures and sources: llmaas/replay/prices.py); the decisions are the daemon's own.

--eviction belady knows the trace's future, unbounded has a POOL for everything: no policy can do better.

examples:
  llmaas replay traces/evening.jsonl
  llmaas replay traces/evening.jsonl --cells 4096 --pool-bytes 16M --json
  llmaas replay traces/evening.jsonl --device sd --machine board --model-profile 0.5B --eviction lru
  generate-calls | llmaas replay -        from standard input
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("trace", type=Path, help="a file of JSON lines, or - for standard input")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--device", choices=DEVICES, default="nvme", help="prices of this storage (default: %(default)s)"
    )
    parser.add_argument(
        "--machine", choices=MACHINES, default="pc", help="speed of this machine (default: %(default)s)"
    )
    parser.add_argument(
        "--model-profile", choices=MODELS, default="0.1B", help="a model of this size (default: %(default)s)"
    )
    parser.add_argument(
        "--eviction",
        choices=[*EVICTION, "belady", "unbounded"],
        default=DEFAULT_EVICTION,
        help="who leaves the POOL (default: %(default)s, the daemon's)",
    )
    parser.add_argument(
        "--scheduling",
        choices=list(SCHEDULING),
        default=DEFAULT_SCHEDULING,
        help="whose turn it is (default: %(default)s, the daemon's); fifo: by priority, then by arrival, to the end",
    )
    add_settings(parser, _SETTINGS)


def run(args: argparse.Namespace) -> int:
    from llmaas.cli.planner_choices import planner_choices
    from llmaas.planner.settings import planner_settings
    from llmaas.replay.prices import costs
    from llmaas.replay.simulator import Replay, belady, unbounded
    from llmaas.replay.trace import read_trace

    config = configured(args)
    try:
        lines = sys.stdin.readlines() if str(args.trace) == "-" else args.trace.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"cannot read the trace {args.trace}: {error}", hint="Give a file of JSON lines.") from error
    bound = {"belady": belady, "unbounded": unbounded}.get(args.eviction)
    eviction = {} if bound else {"eviction": args.eviction}
    settings = planner_settings(
        dataclasses.replace(planner_choices(config), scheduling=args.scheduling, **eviction),
        n_cells=config.cells,
        n_seqs=config.sequences,
        ctx_limit=config.cells,
        geometry=MODELS[args.model_profile].geometry,
        max_batch=max(512, config.prefill_slice),
    )
    trace, prices = list(read_trace(lines)), costs(args.device, args.machine, args.model_profile)
    report = bound(trace, settings, prices) if bound else Replay(settings, prices).run(trace)
    figures = _figures(report)
    if args.json:
        print_json(figures)
    else:
        rows = [[name, _shown(name, value)] for name, value in figures.items()]
        print(table(["FIGURE", "VALUE"], rows, sys.stdout))
    return 0


def _figures(report: ReplayReport) -> dict[str, object]:
    """What a trace came to; milliseconds of virtual time, tokens, chunks and bytes as named."""
    back = sorted(c.switch_s * 1e3 for c in report.calls if sum(c.sources))
    first = sorted((c.first_token - c.submitted) * 1e3 for c in report.calls if c.call.generate)
    return {
        "calls": len(report.calls),
        "switches": len(back),
        "switch_ms_mean": statistics.fmean(back) if back else 0.0,
        "switch_ms_p50": _quantile(back, 50),
        "switch_ms_p99": _quantile(back, 99),
        "ttft_ms_p50": _quantile(first, 50),
        "ttft_ms_p99": _quantile(first, 99),
        **_by_priority(report),
        **dataclasses.asdict(report.tally),
    }


def _by_priority(report: ReplayReport) -> dict[str, float]:
    """Times to the first token, where a trace has more than one priority."""
    first: dict[int, list[float]] = {}
    for c in report.calls:
        if c.call.generate and c.first_token:
            first.setdefault(c.call.priority, []).append((c.first_token - c.submitted) * 1e3)
    if len(first) < 2:
        return {}
    shares = [(f"ttft_ms_priority_{p}_p{q}", _quantile(sorted(first[p]), q)) for p in sorted(first) for q in (50, 99)]
    return dict(shares)


def _quantile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _shown(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return human_bytes(value) if name.startswith("bytes") and isinstance(value, int) else str(value)

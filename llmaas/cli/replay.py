"""``llmaas replay``: a trace of calls, run through the planner in virtual time.

Law: the planner that serves decides; no model, no daemon and no file but the trace is touched.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from llmaas.cli import replay_cluster
from llmaas.cli.options import add_settings, configured
from llmaas.cli.out import human_bytes, print_json, table
from llmaas.cli.planner_choices import batch_tokens, planner_choices
from llmaas.planner.settings import PlannerSettings, planner_settings
from llmaas.policies.eviction import DEFAULT_EVICTION, EVICTION
from llmaas.policies.scheduling import DEFAULT_SCHEDULING, SCHEDULING
from llmaas.replay.bounds import belady, unbounded
from llmaas.replay.figures import figures
from llmaas.replay.prices import DEVICES, MACHINES, MODELS, costs
from llmaas.replay.report import ReplayReport
from llmaas.replay.simulator import Replay
from llmaas.traces.call import TraceCall, read_trace
from llmaas.traces.files import load

_BOUNDS = {"belady": belady, "unbounded": unbounded}
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
It may also have a "priority" (0 to 9), a "deadline_s" and a "rate", as calls have. "llmaas trace" makes traces.

Prices are those of SmolLM2-135M on two x86 cores with a fast disk, unless a device, a machine or a model is named
(their figures and sources: llmaas/replay/prices.py); the decisions are the daemon's own.

--eviction belady knows the trace's future, unbounded has a POOL for everything: no policy can do better.

With --cluster the trace's calls go to many nodes, and the policy that places calls in a cluster decides where to.

examples:
  llmaas replay traces/evening.jsonl
  llmaas replay traces/evening.jsonl --cells 4096 --pool-bytes 16M --json
  llmaas replay traces/evening.jsonl --device sd --machine board --model-profile 0.5B --eviction lru
  llmaas replay traces/chats.jsonl --cluster 2xphone,board,gpu --models 0.5B,1B,8B --placer all --speed 20
  generate-calls | llmaas replay -        from standard input
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("trace", type=Path, help="JSON lines, perhaps compressed (.gz, .zst), or - for standard input")
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
        choices=[*EVICTION, *_BOUNDS],
        default=DEFAULT_EVICTION,
        help="which chunks leave the POOL (default: %(default)s, the daemon's)",
    )
    parser.add_argument(
        "--scheduling",
        choices=list(SCHEDULING),
        default=DEFAULT_SCHEDULING,
        help="which call is next (default: %(default)s, the daemon's); fifo: by priority, then by arrival, to the end",
    )
    replay_cluster.add_arguments(parser)
    add_settings(parser, _SETTINGS)


def run(args: argparse.Namespace) -> int:
    if args.cluster is not None:
        return replay_cluster.run(args, _calls(args.trace))
    found = figures(_replay(args, _calls(args.trace)))
    if args.json:
        print_json(found)
    else:
        rows = [[name, _shown(name, value)] for name, value in found.items()]
        print(table(["FIGURE", "VALUE"], rows, sys.stdout))
    return 0


def _calls(trace: Path) -> list[TraceCall]:
    return list(read_trace(sys.stdin)) if str(trace) == "-" else load(trace)


def _replay(args: argparse.Namespace, trace: list[TraceCall]) -> ReplayReport:
    settings, prices = _planner_settings(args), costs(args.device, args.machine, args.model_profile)
    if args.eviction in _BOUNDS:
        return _BOUNDS[args.eviction](trace, settings, prices)
    return Replay(dataclasses.replace(settings, eviction=args.eviction), prices).run(trace)


def _planner_settings(args: argparse.Namespace) -> PlannerSettings:
    """As the daemon's, for an engine with the cells of the settings and a model of the profile's size."""
    config = configured(args)
    return planner_settings(
        dataclasses.replace(planner_choices(config), scheduling=args.scheduling),
        n_cells=config.cells,
        n_seqs=config.sequences,
        ctx_limit=config.cells,
        geometry=MODELS[args.model_profile].geometry,
        max_batch=batch_tokens(config),
    )


def _shown(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return human_bytes(value) if name.startswith("bytes") and isinstance(value, int) else str(value)

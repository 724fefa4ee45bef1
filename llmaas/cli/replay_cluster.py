"""``llmaas replay --cluster``: a trace of calls on many nodes, in virtual time.

Law: the policy that places calls in a cluster decides; no model, no network and no file but the trace is touched.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

from llmaas.cli.out import human_bytes, print_json, table
from llmaas.errors import BadRequest
from llmaas.replay.cluster.figures import cluster_figures
from llmaas.replay.cluster.placers import PLACERS
from llmaas.replay.cluster.profiles import PROFILES, SIZES, ClusterModel, NodeProfile
from llmaas.replay.cluster.simulator import ClusterReplay
from llmaas.replay.cluster.workload import with_models
from llmaas.traces.call import TraceCall

MOST_NODES, MOST_MODELS = 1000, 1000
_T = TypeVar("_T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a cluster of nodes")
    group.add_argument(
        "--cluster", metavar="NODES", help=f"nodes by their profiles, as 4xgpu,2xboard: {', '.join(PROFILES)}"
    )
    group.add_argument(
        "--models",
        default="8B",
        metavar="SIZES",
        help=f"models that apps use, the first most often, as 8x1B,2x70B: {', '.join(SIZES)} (default: %(default)s)",
    )
    group.add_argument(
        "--placer",
        choices=[*PLACERS, "all"],
        default="placement",
        help="who decides where a call goes (default: %(default)s, as in a cluster); all: one after the other",
    )
    group.add_argument("--speed", type=float, default=1.0, help="calls come so many times as often (default: 1)")
    group.add_argument("--seed", type=int, default=1, help="for placers that draw (default: %(default)s)")


def run(args: argparse.Namespace, trace: Sequence[TraceCall]) -> int:
    """What each placer makes of the trace. Raises BadRequest for what is not possible."""
    if not args.speed > 0:
        raise BadRequest("--speed is a number above 0")
    profiles, models = nodes_of(args.cluster), models_of(args.models)
    calls = with_models(trace, models, speed=args.speed)
    names = list(PLACERS) if args.placer == "all" else [args.placer]
    found = {
        name: cluster_figures(
            ClusterReplay(profiles, models, PLACERS[name](random.Random(args.seed).randrange)).run(calls)
        )
        for name in names
    }
    if args.json:
        print_json(found)
    else:
        rows = [[name, *(_shown(name, found[placer][name]) for placer in names)] for name in found[names[0]]]
        print(table(["FIGURE", *names], rows, sys.stdout))
    return 0


def nodes_of(text: str) -> list[NodeProfile]:
    """As ``--cluster`` says. Raises BadRequest."""
    return [PROFILES[name] for name in counted(text, PROFILES, "--cluster", MOST_NODES)]


def models_of(text: str) -> list[ClusterModel]:
    """As ``--models`` says. Raises BadRequest."""
    sizes = counted(text, SIZES, "--models", MOST_MODELS)
    return [ClusterModel.of(f"{size}-{i}", size) for i, size in enumerate(sizes)]


def counted(text: str, known: dict[str, _T], flag: str, most: int) -> list[str]:
    """The names that a list like ``4xgpu,board`` stands for. Raises BadRequest that says which there are.

    >>> counted("2xgpu,board", {"gpu": 1, "board": 1}, "--cluster", 10)
    ['gpu', 'gpu', 'board']
    """
    names: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:([0-9]{1,4})x)?(.+)", part.strip())
        if match is None or match[2] not in known:
            raise BadRequest(f"{flag}: {part.strip()!r} is none of {', '.join(known)}", hint="As in 4xgpu,board.")
        names += [match[2]] * int(match[1] or 1)
    if not 0 < len(names) <= most:
        raise BadRequest(f"{flag}: 1 to {most} are possible, not {len(names)}")
    return names


def _shown(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return human_bytes(value) if name.endswith("_bytes") and isinstance(value, int) else str(value)

"""How soon calls start on a cluster: the service's placement and six others, in virtual time; and what deciding costs.

``scenes``: real traces on nodes and models by ``replay/cluster/profiles.py``, at the traces' own speed but for ``home``
and ``a thousand nodes``. Which model an app uses is made up (``replay/cluster/workload.py``). Start-up is the time from
a call until its node begins with what is new of it: its turn, its model and its context are there. ``first`` is the
time to the first token. The bars are for ``bursts``: Azure's code trace, whose gaps vary 13 times as much as their
mean. Scenes whose trace is not there (``--traces``) are left out, but for ``bursts``: a generated trace is taken.

``decisions``: what the placer's table takes to decide, with how many nodes and contexts, each of 5 to 90 chunks; and
the bytes that it keeps of a node's contexts, and that a node sends of them.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.machine import ROOT
from bench.lib.stats import sig
from llmaas.cli.replay_cluster import models_of, nodes_of
from llmaas.policies.context_marks import ContextMarks, kept_marks
from llmaas.policies.node_report import CallToPlace, ModelHere, ModelTier, MovableCall, NodeReport, TransferCost
from llmaas.policies.node_table import NodeTable
from llmaas.policies.placement import PlacedCall
from llmaas.replay.cluster.figures import cluster_figures
from llmaas.replay.cluster.placers import PLACERS
from llmaas.replay.cluster.simulator import ClusterReplay
from llmaas.replay.cluster.workload import ClusterCall, with_models
from llmaas.traces import bursts
from llmaas.traces.azure import read_azure
from llmaas.traces.call import TraceCall
from llmaas.traces.mooncake import read_mooncake

TRACES = ROOT.parent / "shared/data/arrival_traces"
_AZURE = "azure_CC-BY-4.0/AzureLLMInferenceTrace_{}.csv"
_MOONCAKE = "mooncake_Apache-2.0/conversation_trace.jsonl"
_FLEET = "24x8B,8x14B,4x32B,4x70B,24x1B"
_SMALL = "16x8B,3x3B,4x14B,8x1B"


@dataclass(frozen=True, slots=True)
class Scene:
    """``most``: calls of the trace that are taken; ``quick``: with ``--quick``, where 0 leaves the scene out."""

    trace: str
    nodes: str
    models: str
    speed: float = 1.0
    quick: int = 0
    most: int = 100_000


SCENES = {
    "bursts": Scene("code", "32xserver", _FLEET, quick=6000),
    "small models": Scene("code", "64xgpu", _SMALL),
    "conversations": Scene("conv", "64xgpu", _SMALL, quick=1500),
    "prefixes": Scene("mooncake", "64xgpu", "3x8B,3x3B,14B,2x1B", quick=1000),
    "home": Scene("conv", "3xphone,2xboard,2xpc,orin-nx", "0.5B,1B,0.1B,1.5B", 0.05, quick=1000),
    "generated": Scene("bursts", "16xgpu", _SMALL, quick=1000),
    "a thousand nodes": Scene("conv", "600xgpu,300xorin-nx,100xserver", _FLEET, 20.0, most=5000),
}
BURSTS = "bursts"
_MS, _NODES, _CONTEXTS = 1.0, 100, 10_000
GB = 10**9


def calls_of(name: str, folder: Path, *, quick: bool) -> list[ClusterCall]:
    scene = SCENES[name]
    trace = list(_trace(scene.trace if path_of(scene.trace, folder).exists() else "bursts", folder))
    return with_models(trace[: scene.quick if quick else scene.most], models_of(scene.models), speed=scene.speed)


def scenes_there(folder: Path, *, quick: bool) -> list[str]:
    """The scenes whose traces are there, and that of the bars."""
    return [
        name
        for name, scene in SCENES.items()
        if (scene.quick or not quick) and (path_of(scene.trace, folder).exists() or "bursts" in (name, scene.trace))
    ]


def path_of(trace: str, folder: Path) -> Path:
    return folder / (_MOONCAKE if trace == "mooncake" else _AZURE.format(trace))


def _trace(name: str, folder: Path) -> Iterator[TraceCall]:
    if name == "bursts":
        yield from bursts.make(2000, limit=8192, hours=50)
        return
    with path_of(name, folder).open(encoding="utf-8") as lines:
        if name == "mooncake":
            yield from read_mooncake(lines, limit=131072)
        else:
            yield from read_azure(lines, pattern="markov", contexts=2000, limit=8192)


def replayed(name: str, placer: str, folder: Path, seed: int, *, quick: bool) -> dict[str, Any]:
    scene = SCENES[name]
    calls = calls_of(name, folder, quick=quick)
    profiles = nodes_of(scene.nodes)
    replay = ClusterReplay(profiles, models_of(scene.models), PLACERS[placer](random.Random(seed).randrange))
    report = replay.run(calls)
    assert not replay.check(), replay.check()
    found = cluster_figures(report)
    return {"scene": name, "nodes": len(profiles), "placer": placer} | {
        key: sig(value) if isinstance(value, float) else value for key, value in found.items()
    }


def scenes(options: Options, folder: Path) -> tuple[list[dict[str, Any]], list[Bar]]:
    names = scenes_there(folder, quick=options.quick)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, placer in itertools.product(names, PLACERS):
        make = partial(replayed, name, placer, folder, options.seed, quick=options.quick)
        row = rows[name, placer] = options.step(f"{options.quick} {options.seed}: {name}, {placer}", make)
        say(
            f"{name:16} {placer:14} start p50 {row['start_s_p50']:8} p99 {row['start_s_p99']:8} s  first p99"
            f" {row['first_s_p99']:8} s  {row['loads']:6} loads  contexts {row['context_bytes'] / 1e9:8.1f} GB"
            f"  recomputed {row['recomputed']:9}  moved {row['calls_moved']:5}  stopped {row['preemptions']:5}"
        )
    ours = rows[BURSTS, "placement"]["start_s_p99"]
    bars = [
        Bar(f"bursts: p99 start-up, {other} over placement", rows[BURSTS, other]["start_s_p99"] / ours, bar)
        for other, bar in (("availability", 2.0), ("random", 5.0))
    ]
    return list(rows.values()), bars


# -- what a decision costs


def table_of(n_nodes: int, n_contexts: int, rng: random.Random) -> tuple[NodeTable, list[CallToPlace], int]:
    """A busy cluster, calls for it, and the bytes that a node with its share of the contexts sends of them."""
    table, names = NodeTable(), [f"n{i:04}" for i in range(n_nodes)]
    links = {name: TransferCost(1e-3, 1e-8) for name in names}
    loads = {ModelTier.MEMORY: TransferCost(0.3, 1e-10), ModelTier.DISK: TransferCost(0.3, 1e-9)}
    asked, sent = [], 0
    for name in names:
        models = {f"m{k}": ModelHere(rng.choice([*loads, ModelTier.LOADED]), rng.uniform(50, 5000)) for k in range(16)}
        movable = tuple(
            MovableCall(str(k), "m0", GB, 1000, 6_000_000, GB, rng.uniform(0, 3), 0.2) for k in range(rng.randint(0, 4))
        )
        free = rng.choice([0, 4 * GB, 16 * GB])
        queue_s = rng.choice([0.0, rng.uniform(0, 10)])
        table.report(
            NodeReport(
                name, models, loads, TransferCost(1e-3, 1e-9), queue_s, queue_s + 10, 0.0, free, 16 * GB,
                links=links, movable=movable,
            ),
            0.0,
        )  # fmt: skip
        share = n_contexts // n_nodes
        chains = (tuple(rng.getrandbits(64) for _ in range(rng.randint(5, 90))) for _ in range(share))
        for i, chain in enumerate(chains):
            table.holds(name, kept_marks(chain))
            if i < 3000 // n_nodes + 1:
                n, model = len(chain) * 64, f"m{rng.randrange(16)}"
                asked.append(CallToPlace(model, rng.choice([GB, 8 * GB]), 100, n, chain, 6301.0, name))
            if name == names[0]:
                sent += len(ContextMarks.of([chain]).to_bytes())
    return table, asked, sent


def decided(n_nodes: int, n_contexts: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    table, asked, sent = table_of(n_nodes, n_contexts, rng)
    times, moves = [], 0
    for call in rng.sample(asked, min(1000, len(asked))):
        begin = time.thread_time()
        found = table.place(call, 0.5)
        times.append(time.thread_time() - begin)
        moves += isinstance(found, PlacedCall) and found.move is not None
    times.sort()
    grow = [tuple(rng.getrandbits(64) for _ in range(8)) for _ in range(200)]
    begin = time.thread_time()
    for marks in grow:
        table.holds("n0000", marks[:2], ())
    told_s = (time.thread_time() - begin) / len(grow)
    return {
        "nodes": n_nodes,
        "contexts": n_contexts,
        "decision_ms_p50": sig(times[len(times) // 2] * 1e3),
        "decision_ms_p99": sig(times[len(times) * 99 // 100] * 1e3),
        "turn_told_ms": sig(told_s * 1e3),
        "marks": len(table.marks),
        "table_bytes": table.marks.nbytes,
        "table_bytes_per_node": table.marks.nbytes // n_nodes,
        "sent_bytes_per_node": sent,
        "moves": moves,
    }


def kept_in_a_dict(n_contexts: int, seed: int) -> float:
    """Bytes a mark in what Python would use by itself: a dict from marks to nodes."""
    rng = random.Random(seed)
    chains = [tuple(rng.getrandbits(64) for _ in range(rng.randint(5, 90))) for _ in range(n_contexts)]
    tracemalloc.start()
    held = {int(mark): n % 100 for n, chain in enumerate(chains) for mark in map(str, kept_marks(chain))}
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return taken / len(held)


def decisions(options: Options) -> tuple[list[dict[str, Any]], list[Bar]]:
    sizes = [(_NODES, _CONTEXTS), (10, 1_000)]
    if not options.quick:
        sizes += [(100, 100_000), (1_000, 10_000), (1_000, 1_000_000)]
    rows = []
    for n_nodes, n_contexts in sizes:
        row = options.step(f"decisions {n_nodes} {n_contexts}", partial(decided, n_nodes, n_contexts, options.seed))
        say(
            f"{n_nodes:5} nodes {n_contexts:8} contexts: decision p50 {row['decision_ms_p50']} p99"
            f" {row['decision_ms_p99']} ms, a turn told in {row['turn_told_ms']} ms,"
            f" {row['table_bytes_per_node']} bytes a node, {row['table_bytes'] / 1e6:.1f} MB in all"
        )
        rows.append(row)
    bars = [Bar(f"{_NODES} nodes, {_CONTEXTS} contexts: ms of a decision, p99", rows[0]["decision_ms_p99"], _MS, True)]
    return rows, bars


def measure(options: Options, folder: Path) -> Result:
    decided_rows, decided_bars = decisions(options)
    scene_rows, scene_bars = scenes(options, folder)
    dict_bytes = sig(kept_in_a_dict(2_000, options.seed))
    say(f"a mark takes {dict_bytes} bytes in a dict, 10 in the table")
    figures = {"scenes": scene_rows, "decisions": decided_rows, "dict_bytes_per_mark": dict_bytes}
    return Result("none: replay", figures, [*scene_bars, *decided_bars])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--traces", type=Path, default=TRACES)
    own, sys.argv[1:] = parser.parse_known_args()
    sys.exit(main("cluster", __doc__ or "", partial(measure, folder=own.traces)))

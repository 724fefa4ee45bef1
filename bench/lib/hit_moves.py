"""Moves that are hit: contexts of the fake engine go from node to node, while nodes are killed and links are cut.

Law: an acknowledged turn is looked for at the node that has the context then, and exactly one must have it.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lib.cli import Options, say
from bench.lib.node import NodeProcess, two_nodes
from llmaas.api.client import Client
from llmaas.errors import LlmaasError
from llmaas.kvchunks.store.store import Store

LATE_S = 60.0
_HIT_S = 0.05
_FAULTS = ("source killed", "target killed", "link cut")
_CONTEXTS = 8
_AT_ONCE = 4
"""Contexts that are moved at once, and hit by the same fault: a node that was killed takes seconds to start."""


@dataclass
class Load:
    """Uses a context of each node that never moves, until ``stop``; every answer that was acknowledged must stay."""

    nodes: tuple[NodeProcess, ...]
    acknowledged: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for node in self.nodes:
            self._threads.append(threading.Thread(target=self._use, args=(node,)))
            self._threads[-1].start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _use(self, node: NodeProcess) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(LlmaasError, OSError), node.client() as client:
                client.context("stays")
                while not self._stop.is_set():
                    if client.show("stays").info.n_tokens > 600:
                        client.truncate("stays", n_tokens=0)
                    client.ask("stays", "hello", max_tokens=20)
                    self.acknowledged[node.name] += 1
            self._stop.wait(0.05)


def owner_of(nodes: tuple[NodeProcess, ...], name: str) -> tuple[NodeProcess, list[Any]]:
    """The one node that has the context, and what is in it. Raises RuntimeError if two have it, or none."""
    late, seen = time.monotonic() + LATE_S, "nothing"
    while time.monotonic() < late:
        found = []
        for node in nodes:
            with contextlib.suppress(LlmaasError), node.client() as client:
                if _lists(client, name):
                    found.append((node, list(client.show(name).messages)))
        if len(found) == 1 and not _in_doubt(nodes, name, found[0][0]):
            return found[0]
        seen = f"{len(found)} nodes"
        time.sleep(0.1)
    raise RuntimeError(f"{seen} have the context {name}")


def _in_doubt(nodes: tuple[NodeProcess, ...], name: str, owner: NodeProcess) -> bool:
    """Whether another node still lists it."""
    for node in nodes:
        if node is not owner:
            with node.client() as client:
                if _lists(client, name):
                    return True
    return False


def _lists(client: Client, name: str) -> bool:
    return any(info.name == name for info in client.contexts())


def hit(kind: str, source: NodeProcess, target: NodeProcess) -> None:
    match kind:
        case "source killed":
            source.kill()
        case "target killed":
            target.kill()
        case "link cut":
            target.link.cut()


def move_some(
    rng: random.Random, source: NodeProcess, target: NodeProcess, names: Sequence[str], kind: str
) -> Counter[str]:
    """Move them at once. What became of the requests."""

    def move(name: str) -> str:
        with contextlib.suppress(LlmaasError, OSError), source.client() as client:
            client.move(name, target.name)
            return "moved"
        return "failed"

    timer = threading.Timer(rng.uniform(0, _HIT_S), hit, (kind, source, target))
    with ThreadPoolExecutor(len(names)) as pool:
        if kind:
            timer.start()
        found = Counter(pool.map(move, names))
    if kind:
        timer.join()
    return found


def hit_moves(options: Options, n_moves: int) -> dict[str, Any]:
    rng, tally = random.Random(options.seed), Counter[str]()
    with two_nodes(options, "--cells", "2048", "--no-encrypt", fake=True) as nodes:
        where = {}
        for i in range(_CONTEXTS):
            node = nodes[i % 2]
            with node.client() as client:
                client.create(name=f"talk-{i}", system="Be brief.")
            where[f"talk-{i}"] = node
        load = Load(nodes)
        load.start()
        try:
            while tally["moves"] < n_moves:
                some(rng, nodes, where, tally)
        finally:
            load.stop()
    unsound = sum(bool(_problems(node.folder / "store")) for node in nodes)
    figures = {**tally, "turns_of_others": sum(load.acknowledged.values()), "unsound_stores": unsound}
    say(f"faults: {figures}")
    return figures


def some(
    rng: random.Random, nodes: tuple[NodeProcess, NodeProcess], where: dict[str, NodeProcess], tally: Counter[str]
) -> None:
    """Move a few contexts that one node has, after a turn of each, and look where they are then."""
    source = where[rng.choice(sorted(where))]
    target = nodes[0] if source is nodes[1] else nodes[1]
    names = [name for name, node in sorted(where.items()) if node is source]
    names = rng.sample(names, min(_AT_ONCE, len(names)))
    before = {}
    with source.client() as client:
        for name in names:
            if client.show(name).info.n_tokens > 600:
                client.truncate(name, n_tokens=0)
            client.ask(name, f"turn {tally['moves']}", max_tokens=30)
            before[name] = list(client.show(name).messages)
    tally["rounds"] += 1
    kind = _FAULTS[tally["rounds"] // 2 % len(_FAULTS)] if tally["rounds"] % 2 else ""
    tally.update(move_some(rng, source, target, names, kind))
    tally[kind or "no fault"] += len(names)
    for node in nodes:
        node.start_if_killed()
    for name in names:
        where[name], after = owner_of(nodes, name)
        tally["lost"] += before[name] != after
    tally["moves"] += len(names)


def _problems(root: Path) -> tuple[Any, ...]:
    with Store(root) as store:
        return tuple(store.check().problems)

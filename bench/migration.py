"""What a move of a context to another node takes, and whether anything is lost when nodes and links fail meanwhile.

Two daemons, each with half of the threads and a store of its own, are paired over a proxy on loopback that passes so
many bits a second. The pause is what a person waits who moves an idle conversation (3,000 tokens of SmolLM2;
``--quick``: 800) and asks at once at the other node: from the request to move to the first token of the answer there.
``chunks``: coded chunks go with it; ``tokens``: nothing but tokens, and all is computed there. ``link_s`` is what the
bytes that went take on such a link by themselves.

``answered``: the conversation moves while it is answered, and the pause is the longest time between two pieces of the
answer that whoever asked sees from the request to move on; ``piece_s`` is what is usual, ``move_s`` the time until the
answer goes on there. ``tokens``, ``chunks`` and ``both`` are the ways: nothing but tokens, all coded chunks, or chunks
as far as the link is faster than the other node computes. ``both`` is compared with the better of the others, by
``move_s`` and by the pause; of a way that took longer than the answer the pause is none, and ``left`` is 0.

Then contexts of the fake engine are moved at random, each after a turn that was acknowledged, while other contexts of
both nodes are in use. Half of the moves are hit, within the first 50 ms: one node is killed by SIGKILL, or the link is
cut. After each, exactly one node must have the context, with every message, and at the end both stores must be sound.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.node import NodeProcess, two_nodes
from llmaas.api.client import Client
from llmaas.api.transfer_messages import MOVE_WAYS
from llmaas.errors import LlmaasError
from llmaas.kvchunks.store.store import Store
from llmaas.records import CHUNK_TOKENS

LATE_S = 60.0
_LETTERS = "the tide comes in and goes out, and nobody is at the harbour but a boat that waits for morning "
_HIT_S = 0.05
_ANSWER = 500
"""Tokens, so that the answer goes on for longer than chunks take that go ahead of the context."""
_PIECES, _AFTER = 4, 20
"""Pieces of the answer before the move begins, and tokens behind it that are read."""
_BAR_MBIT = 100
_CONTEXTS = 6


# -- the pause


def fill(client: Client, n_tokens: int, seed: int) -> None:
    """The context ``base``, with all of its full chunks coded."""
    rng, words = random.Random(seed), _LETTERS.split()
    client.create(name="base")
    while (n := client.show("base").info.n_tokens) < n_tokens:
        client.append("base", prompt=" ".join(rng.choices(words, k=min(400, n_tokens - n))))
    late = time.monotonic() + LATE_S
    indices = range(n_tokens // CHUNK_TOKENS)
    while any(not client.export_chunks("base", [index], n_bytes=1).pieces for index in indices):
        assert time.monotonic() < late, "chunks were not coded in time"
        time.sleep(0.2)


def moved_once(a: NodeProcess, b: NodeProcess, n: int, way: str) -> dict[str, float]:
    with a.client() as here, b.client() as there:
        name = here.fork("base", name=f"move-{n}").name
        start = time.perf_counter()
        moved = here.move(name, "b", way=way)
        at = time.perf_counter()
        stream = there.generate(name, prompt=" And then", max_tokens=1)
        next(iter(stream))
        pause = time.perf_counter() - start
        recomputed = stream.done.switch.recomputed
        there.delete(name)
    return {"pause_s": pause, "move_s": at - start, "bytes": moved.n_bytes, "recomputed": recomputed}


def moved_while_answered(a: NodeProcess, b: NodeProcess, n: int, way: str, *, whole: bool) -> dict[str, float]:
    """``whole``: read the answer to its end."""
    times, begun, has_moved = list[tuple[float, int]](), threading.Event(), threading.Event()
    with a.client() as here, b.client() as there:
        name = here.fork("base", name=f"answer-{n}").name

        def ask() -> None:
            with a.client() as asking:
                stream = asking.generate(name, prompt=" And then", max_tokens=_ANSWER)
                after = 0
                for piece in stream:
                    times.append((time.perf_counter(), len(piece.tokens)))
                    after += len(piece.tokens) if has_moved.is_set() else 0
                    if len(times) >= _PIECES:
                        begun.set()
                    if after > _AFTER and not whole:
                        return

        asker = threading.Thread(target=ask)
        asker.start()
        begun.wait(LATE_S)
        start = time.perf_counter()
        moved = here.move(name, "b", way=way)
        move_s, told = time.perf_counter() - start, sum(n for _, n in times)
        has_moved.set()
        asker.join()
        there.delete(name)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(times) if later > start]
    return {
        "pause_s": max(gaps),
        "piece_s": median(gaps),
        "move_s": move_s,
        "bytes": moved.n_bytes,
        "told": sum(n for _, n in times),
        "left": _ANSWER - told,
    }


def answered(a: NodeProcess, b: NodeProcess, rates: Sequence[int], options: Options) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for i, mbit in enumerate(rates):
        names = {way: f"answered_{way}_{mbit}_mbit" for way in MOVE_WAYS}

        def measured(mbit: int = mbit, first: int = 100 * i) -> dict[str, dict[str, float]]:
            b.link.bits_per_s = mbit * 1e6
            return of_ways(a, b, mbit, first, quick=options.quick)

        of_way = options.kept.step(f"answered_{mbit}_mbit", measured)
        found |= {name: of_way[way] for way, name in names.items()}
    return found


def of_ways(a: NodeProcess, b: NodeProcess, mbit: int, first: int, *, quick: bool) -> dict[str, dict[str, float]]:
    """The ways in turn, so that what else the machine does hits all of them."""
    n, runs, found = first, {way: list[dict[str, float]]() for way in MOVE_WAYS}, dict[str, dict[str, float]]()
    for i in range(3 if quick else 5):
        for way in MOVE_WAYS if i < (1 if quick else 3) else MOVE_WAYS[:2]:  # of the slow one fewer
            n += 1
            runs[way].append(moved_while_answered(a, b, n, way, whole=way == "both" and i == 0))
    for way, of_way in runs.items():
        figures = found[way] = _middle(of_way, mbit)
        figures["told"], figures["left"] = max(run["told"] for run in of_way), min(run["left"] for run in of_way)
    return found


def bars_of_answers(figures: Mapping[str, Any], rates: Sequence[int]) -> list[Bar]:
    bars = []
    for mbit in rates:
        both, chunks, tokens = (figures[f"answered_{way}_{mbit}_mbit"] for way in MOVE_WAYS)
        bars.append(Bar(f"tokens of the answer that were left when it had moved, {mbit} Mbit/s", both["left"], 1))
        bars.append(Bar(f"tokens told of an answer that moved, {mbit} Mbit/s", both["told"], _ANSWER))
        ratio = both["move_s"] / min(chunks["move_s"], tokens["move_s"])
        bars.append(Bar(f"both ways, against the better one, {mbit} Mbit/s", ratio, 1.1, True))
        pauses_of = [way["pause_s"] for way in (chunks, tokens) if way["left"]]  # else it had ended before it moved
        ratio = both["pause_s"] / min(pauses_of, default=math.inf)
        bars.append(Bar(f"pause with both ways, against the better one, {mbit} Mbit/s", ratio, 1.1, True))
    pause = figures[f"answered_both_{_BAR_MBIT}_mbit"]["pause_s"]
    bars.append(Bar(f"pause of an answer that moves, {_BAR_MBIT} Mbit/s, seconds", pause, 0.2, True))
    return bars


def pauses(options: Options) -> tuple[dict[str, Any], list[Bar]]:
    n_tokens = 800 if options.quick else 3000
    rates = (100, 1000) if options.quick else (10, 100, 1000)
    figures: dict[str, Any] = {"tokens": n_tokens}
    with two_nodes(options, "--cells", "8192") as (a, b):
        with a.client() as client:
            fill(client, n_tokens, options.seed)
        for i, (way, mbit) in enumerate(
            [("chunks", rate) for rate in rates] + [("tokens", rate) for rate in rates[-2:]]
        ):
            name = f"{way}_{mbit}_mbit"
            figures[name] = options.kept.step(name, partial(at_rest, a, b, way, mbit, 10 * i, quick=options.quick))
        figures |= answered(a, b, rates, options)
    return figures, bars_of_answers(figures, rates) + bars_at_rest(figures, rates)


def at_rest(a: NodeProcess, b: NodeProcess, way: str, mbit: int, first: int, *, quick: bool) -> dict[str, float]:
    b.link.bits_per_s = mbit * 1e6
    n_runs = 1 if way == "tokens" else 3 if quick or mbit < 100 else 7
    return _middle([moved_once(a, b, first + n, way) for n in range(n_runs)], mbit)


def bars_at_rest(figures: Mapping[str, Any], rates: Sequence[int]) -> list[Bar]:
    bars = []
    for mbit in rates:
        with_chunks = figures[f"chunks_{mbit}_mbit"]
        if f"tokens_{mbit}_mbit" in figures:
            ratio = figures[f"tokens_{mbit}_mbit"]["pause_s"] / with_chunks["pause_s"]
            bars.append(Bar(f"pause with tokens alone, against chunks, {mbit} Mbit/s", ratio, 1.0))
    at_100 = figures["chunks_100_mbit"]
    bars.append(Bar("a move at 100 Mbit/s, against its bytes alone", at_100["move_s"] / at_100["link_s"], 2.0, True))
    return bars


def _middle(runs: Sequence[Mapping[str, float]], mbit: int) -> dict[str, float]:
    found = {key: median([run[key] for run in runs]) for key in runs[0]}
    found["link_s"] = 8 * found["bytes"] / (mbit * 1e6)
    say(f"{mbit} Mbit/s: {found}")
    return found


# -- moves that fail


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
                if any(info.name == name for info in client.contexts()):
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
                if any(info.name == name for info in client.contexts()):
                    return True
    return False


def hit(kind: str, source: NodeProcess, target: NodeProcess) -> None:
    match kind:
        case "source killed":
            source.kill()
        case "target killed":
            target.kill()
        case "link cut":
            target.link.cut()


def move_one(rng: random.Random, source: NodeProcess, target: NodeProcess, name: str, kind: str) -> str:
    """What became of the request."""
    late = rng.uniform(0, _HIT_S)
    timer = threading.Timer(late, hit, (kind, source, target))
    with contextlib.suppress(LlmaasError), source.client() as client:
        if kind:
            timer.start()
        client.move(name, target.name)
        if kind:
            timer.join()
        return "moved"
    timer.join()
    return "failed"


def faults(options: Options) -> tuple[dict[str, Any], list[Bar]]:
    figures = options.kept.step("faults", partial(hit_moves, options))
    bars = [
        Bar("moves after which a turn that was acknowledged was missing", figures["lost"], 0, True),
        Bar("stores that are not sound at the end", figures["unsound_stores"], 0, True),
        Bar("moves that were hit, of all", 1 - figures["no fault"] / figures["moves"], 0.25),
    ]
    return figures, bars


def hit_moves(options: Options) -> dict[str, Any]:
    n_moves, rng = (24 if options.quick else 500), random.Random(options.seed)
    tally: Counter[str] = Counter()
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
            for _ in range(n_moves):
                name = rng.choice(sorted(where))
                source = where[name]
                target = nodes[0] if source is nodes[1] else nodes[1]
                with source.client() as client:
                    if client.show(name).info.n_tokens > 600:
                        client.truncate(name, n_tokens=0)
                    client.ask(name, f"turn {tally['moves']}", max_tokens=30)
                    before = list(client.show(name).messages)
                kind = rng.choice(["source killed", "target killed", "link cut"]) if rng.random() < 0.5 else ""
                tally[move_one(rng, source, target, name, kind)] += 1
                tally[kind or "no fault"] += 1
                for node in nodes:
                    if node.process is not None and node.process.poll() is not None:
                        node.start()
                where[name], after = owner_of(nodes, name)
                tally["lost"] += before != after
                tally["moves"] += 1
        finally:
            load.stop()
    unsound = sum(bool(_problems(node.folder / "store")) for node in nodes)
    figures = {**tally, "turns_of_others": sum(load.acknowledged.values()), "unsound_stores": unsound}
    say(f"faults: {figures}")
    return figures


def _problems(root: Path) -> tuple[Any, ...]:
    with Store(root) as store:
        return tuple(store.check().problems)


def measure(options: Options) -> Result:
    folder = options.folder
    figures, bars = {}, list[Bar]()
    for name, part in (("pauses", pauses), ("faults", faults)):
        (folder / name).mkdir()
        found, more = part(replace(options, folder=folder / name))
        figures[name] = found
        bars += more
    return Result(options.model.name, figures, bars)


if __name__ == "__main__":
    sys.exit(main("migration", __doc__ or "", measure))

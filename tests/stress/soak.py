"""The soak: many clients of every kind use one daemon for a long time; no reply may be wrong, and nothing may leak.

``python -m tests.stress.soak --minutes 30 [--clients 32] [--seed 1] [--model M] [--trace]`` prints a summary as JSON,
and fails if it found a fault. In each round clients connect and disconnect (``soak_clients``) while an operator changes
budgets and limits. At the end of a round all contexts are deleted and the daemon becomes idle. Then its books must
balance, its store must be empty, and it must hold as much (objects, memory, files, threads, tasks) as after the first
rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmaas.api.async_client import AsyncClient
from llmaas.errors import LlmaasError
from llmaas.records import NO_QUOTA
from llmaas.service.places import APPS_AT_ONCE, HINTS, OPERATOR_CALLS
from tests.stress.daemon_under_test import Victim
from tests.stress.soak_clients import LATE, Tally, Visitor, soon
from tests.stress.soak_daemon import ADAPTER_BYTES, AGEING_S, CELLS, END_RATE, POOL_BYTES, QUEUE_LIMIT
from tests.stress.soak_peers import be_killed, talk_nonsense
from tests.support.oracle import Oracle, adapter_files

LONG_WAIT_S = 25.0
"""The longest that the most urgent call may wait, on a busy machine: for a queue, and for a call of its own context."""
BOUNDED = {"Histogram._buckets", "ContextHeap._settled", "ContextHeap._due", "LlamaModel._pieces"}
"""Containers with a largest size, which may hold more than they need until they reach it."""
ADAPTERS = ("amber", "black", "coral", "dusky")
"""Adapters, three of which fit into their memory together."""
MOST_THREADS = 32
"""All threads of all pools together, and some more: pools start their threads when they first need them."""
FDS = 3
"""File descriptors of a thread's own connection to the store."""
WARM = 2
"""Rounds until everything exists that stays (caches, threads, connections of the store)."""


@dataclass
class IdleState:
    """What the daemon holds when it is idle, between two rounds. ``growth``: where memory has grown, with --trace."""

    memory: int
    """Bytes in RAM."""
    fds: int
    threads: int
    tasks: int
    objects: int
    census: dict[str, int] = field(repr=False)
    growth: list[str] = field(repr=False)


@dataclass
class Soak:
    """One soak of the daemon ``victim``. ``verdict`` lists what is wrong."""

    seed: int
    victim: Victim
    n_clients: int
    model: bool
    adapters: dict[str, Path]
    tally: Tally = field(default_factory=Tally)
    peaks: dict[str, int] = field(default_factory=dict)
    rests: list[IdleState] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def round(self, seconds: float) -> None:
        """Use the daemon for ``seconds``, then delete everything and record what it holds."""
        number = len(self.rests)
        go_on, rng = soon(seconds), random.Random(f"{self.seed} {number}")
        oracle = None if self.model else Oracle(CELLS, end_rate=END_RATE, adapters=self.adapters)
        names = tuple(self.adapters)
        clients: list[Coroutine[Any, Any, None]] = [
            Visitor(name, rng.randrange(1 << 60), self.victim.socket, oracle, CELLS, self.tally, names).live(go_on)
            for name in (f"app-{i}" for i in range(self.n_clients))
        ]
        clients.append(self._repeat(go_on, rng.randrange(1 << 60), 0.1, talk_nonsense))
        clients.append(self._repeat(go_on, rng.randrange(1 << 60), 0.5, be_killed))
        clients.append(self._operate(go_on, rng))
        await _all(clients)
        await self._clean_up()

    async def _repeat(self, go_on: Callable[[], bool], seed: int, pause: float, connect: Any) -> None:
        """Call ``connect`` again and again, with random pauses of up to ``pause`` seconds."""
        rng = random.Random(seed)
        while go_on():
            await connect(self.victim.socket, rng, self.tally)
            await asyncio.sleep(rng.uniform(0, pause))

    async def _operate(self, go_on: Callable[[], bool], rng: random.Random) -> None:
        """Change budgets and limits at random, and look at the stats."""
        async with await self._connect() as client:
            while go_on():
                what = rng.choice(["pool", "disk", "limit", "stats", "stats"])
                if what == "pool":
                    await client.budget(pool_bytes=rng.choice([0, 50_000, 200_000, POOL_BYTES]))
                elif what == "disk":
                    await client.budget(disk_bytes=rng.choice([0, 300_000, NO_QUOTA, NO_QUOTA]))
                elif what == "limit":
                    app = rng.choice([None, f"{os.getuid()}/app-{rng.randrange(4)}"])
                    await client.limit(app, rng.choice([None, 200.0, 5000.0]))
                    await asyncio.sleep(0.2)
                    await client.limit(app, None)
                self.tally.note(f"operator: {what}", None)
                self._look(await client.stats())
                await asyncio.sleep(rng.uniform(0, 0.2))

    def _look(self, stats: dict[str, Any]) -> None:
        """Record peaks, and a fault if a limit is exceeded."""
        now = {
            "adapter_bytes": stats["adapters"]["bytes"]["used"],
            "active": stats["requests"]["active"],
            "waiting": stats["requests"]["waiting"],
            "cells": stats["cells"]["used"],
            "pool_bytes": stats["pool_bytes"]["used"],
            "contexts": stats["contexts"],
            "tasks": stats["tasks"],
            **self._process(),
        }
        self.peaks = {name: max(value, self.peaks.get(name, 0)) for name, value in now.items()}
        most_active = APPS_AT_ONCE * QUEUE_LIMIT + OPERATOR_CALLS + HINTS
        too_many = now["active"] > most_active or now["adapter_bytes"] > ADAPTER_BYTES
        if too_many or now["cells"] > stats["cells"]["total"]:
            self.faults.append(f"more than there may be: {now}")

    def _process(self) -> dict[str, int]:
        """What the kernel says of the daemon's process."""
        proc = Path(f"/proc/{self.victim.process.pid}")
        pages = int((proc / "statm").read_text("ascii").split()[1])
        return {
            "memory": pages * os.sysconf("SC_PAGE_SIZE"),
            "fds": len(list((proc / "fd").iterdir())),
            "threads": len(list((proc / "task").iterdir())),
        }

    async def _clean_up(self) -> None:
        """Delete all contexts that are left; the daemon must become idle, and hold nothing."""
        async with await self._connect() as client:
            await client.budget(pool_bytes=POOL_BYTES, disk_bytes=NO_QUOTA)
            late = time.monotonic() + LATE
            while True:
                for info in await client.contexts(everyone=True):
                    with contextlib.suppress(LlmaasError):
                        await client.delete(info.id, everyone=True)
                stats = await client.stats()
                rest = stats.get("rest")
                if rest and not stats["contexts"] and not rest["store"]["chunks"]:
                    break
                assert time.monotonic() < late, f"the daemon does not become idle: {stats}"
                await asyncio.sleep(0.05)
            self.faults += rest["problems"]
            held = {"samplers": rest["samplers"], "cells": stats["cells"]["used"], **rest["store"]}
            held["pool_bytes"] = stats["pool_bytes"]["used"]
            self.faults += [f"{value} {name} are left" for name, value in held.items() if value]
            census = rest["census"]
            self.rests.append(
                IdleState(
                    **self._process(),
                    tasks=stats["tasks"],
                    objects=sum(census.values()),
                    census=census,
                    growth=rest["memory"],
                )
            )

    async def _connect(self) -> AsyncClient:
        return await AsyncClient.connect(self.victim.socket, app="operator", timeout=LATE, admin=True)

    def verdict(self) -> list[str]:
        """All that is wrong; empty if nothing is."""
        wrong = [*self.faults]
        warm = self.rests[min(WARM, len(self.rests)) - 1]
        for number, rest in enumerate(self.rests[WARM:], start=WARM):
            late = FDS * max(0, rest.threads - warm.threads)
            for name, more in (("fds", late + 6), ("tasks", 2)):
                if getattr(rest, name) > getattr(warm, name) + more:
                    wrong.append(f"round {number}: {getattr(rest, name)} {name}, {getattr(warm, name)} before")
            if rest.threads > MOST_THREADS:
                wrong.append(f"round {number}: {rest.threads} threads")
            for name, n in rest.census.items():
                if name not in BOUNDED and n > warm.census.get(name, 0) + (32 if "." in name else 3):
                    wrong.append(f"round {number}: {n} objects {name}, {warm.census.get(name, 0)} before")
        wrong += [
            f"a call of priority {p} waited {s:.1f} s" for p, s in self.tally.longest.items() if s > self._bound(p)
        ]
        half = self.rests[max(WARM, len(self.rests) // 2) - 1 :]
        if len(half) > 1 and half[-1].memory > 1.05 * half[0].memory + (4 << 20):
            wrong.append(f"memory grew from {half[0].memory} to {half[-1].memory} bytes: {half[-1].growth}")
        return wrong

    def _bound(self, priority: int) -> float:
        """The longest that a call of ``priority`` may wait, in seconds.

        First it ages until it is as urgent as any call, then it waits for those that are and came before it.
        """
        return AGEING_S * priority + (LONG_WAIT_S if not self.model else 10 * LONG_WAIT_S)

    def summary(self) -> dict[str, Any]:
        rests = [{k: v for k, v in asdict(rest).items() if k not in ("census", "growth")} for rest in self.rests]
        return {
            "seed": self.seed,
            "clients": self.n_clients,
            "operations": dict(self.tally.operations.most_common()),
            "outcomes": dict(self.tally.outcomes.most_common()),
            "longest_wait_s": {str(p): round(s, 2) for p, s in sorted(self.tally.longest.items())},
            "peaks": self.peaks,
            "rests": rests,
            "growth": self.rests[-1].growth if self.rests else [],
            "faults": self.verdict() if self.rests else self.faults,
        }


async def _all(clients: list[Coroutine[Any, Any, None]]) -> None:
    """Run all of them to their ends; when one fails, cancel the others."""
    tasks = [asyncio.create_task(client) for client in clients]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def soak(
    root: Path,
    *,
    seconds: float,
    rounds: int,
    n_clients: int = 32,
    seed: int = 1,
    model: Path | None = None,
    trace: bool = False,
) -> Soak:
    """Start a daemon in ``root``, soak it for ``seconds`` in all, and stop it.

    Raises AssertionError for a wrong reply; ``Soak.verdict`` has the other faults.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in [str(Path(__file__).parents[2]), *sys.path] if p)}
    command = [sys.executable, "-m", "tests.stress.soak_daemon", "--socket", root / "s", "--data-dir", root / "data"]
    command += ["--model", model] if model else []
    command += ["--trace"] if trace else []
    adapters = {} if model else adapter_files(root / "adapters", ADAPTERS, ADAPTER_BYTES * 10 // 35)
    command += ["--adapters", *adapters.values()] if adapters else []
    pipe = subprocess.PIPE
    process = subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=pipe, text=True, env=env)
    victim = Victim(process, root / "s")
    whole = Soak(seed, victim, n_clients, model is not None, adapters)
    code = None
    try:
        victim.wait_ready()
        for _ in range(rounds):
            asyncio.run(whole.round(seconds / rounds))
        code = victim.end(signal.SIGTERM)
    finally:
        if code is None:
            victim.end(signal.SIGKILL)
            print(f"seed {seed}, round {len(whole.rests)}; the daemon said: {''.join(victim.said)}", file=sys.stderr)
    whole.faults += [line.rstrip() for line in victim.said]
    if code:
        whole.faults.append(f"the daemon's exit code is {code}")
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak a daemon in clients.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--round-seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a GGUF file instead of the fake engine")
    parser.add_argument("--trace", action="store_true", help="say where memory grows (slow)")
    args = parser.parse_args()
    seconds = 60 * args.minutes
    rounds = max(WARM + 1, round(seconds / args.round_seconds))
    with tempfile.TemporaryDirectory(prefix="llmaas-soak-") as root:
        whole = soak(
            Path(root),
            seconds=seconds,
            rounds=rounds,
            n_clients=args.clients,
            seed=args.seed,
            model=args.model,
            trace=args.trace,
        )
    print(json.dumps(whole.summary(), indent=2))
    return 1 if whole.verdict() else 0


if __name__ == "__main__":
    sys.exit(main())

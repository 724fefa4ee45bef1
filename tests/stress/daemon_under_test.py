"""A daemon in a process of its own, to be killed: its parts are those of ``llmaas serve``, with the fake engine.

As a program: ``python daemon_under_test.py --socket S --data-dir D [--die-at write --die-after N]``. It prints "ready"
when it serves. With ``--die-at`` it kills itself with SIGKILL inside the N-th system call of that kind that its store
makes (a write is half done then), before or after the N-th commit, or in the N-th measurement, save or lowering of a
chunk. With the real engine tests use ``llmaas serve`` itself.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmaas.api.server import serve
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.kv_arrays import Queries
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.codec.sensitivity import Scorer
from llmaas.kvchunks.store.store import Files, MasterKey, Store
from llmaas.records import Geometry, Precision
from llmaas.service.service import Service
from tests.support.service_house import service_settings

CELLS = 1024
MASTER = MasterKey(bytes(32))
END_RATE = 0.01
GEOMETRY = Geometry(n_layer=4, k_dim=256, v_dim=256, head_dim_k=64, head_dim_v=64)
"""So wide that a dozen dead chunks are reason enough to rewrite a payload file."""
SITES = ("open", "write", "sync", "unlink", "commit", "committed", "measure", "save", "lower")
STAGES = {"measure": (Scorer, "measure"), "save": (Codec, "encode"), "lower": (Codec, "lower")}
"""The method that does the work, for sites that are work on a chunk."""


class Death:
    """Kills this process at the ``after``-th call of kind ``site``."""

    def __init__(self, site: str, after: int) -> None:
        self._site, self._left = site, after
        self._lock = threading.Lock()
        if site in STAGES:
            owner, name = STAGES[site]
            setattr(owner, name, self._lurking(site, getattr(owner, name)))

    def at(self, site: str) -> bool:
        """Count a call of this kind; whether the process is to die in it."""
        with self._lock:
            self._left -= site == self._site
            return site == self._site and self._left <= 0

    def _lurking(self, site: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def deadly(*args: Any, **options: Any) -> Any:
            if self.at(site):
                die()
            return call(*args, **options)

        return deadly


class DeadlyFiles(Files):
    """System calls and commits in which the process may die; the lock's and SQLite's own calls do not count."""

    def __init__(self, death: Death) -> None:
        self._at = death.at

    def connect(self, path: Path) -> sqlite3.Connection:
        at = self._at

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if sql == "COMMIT" and at("commit"):
                    die()
                done = super().execute(sql, *args)
                if sql == "COMMIT" and at("committed"):
                    die()
                return done

        return sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False, factory=Connection)

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        if path.suffix == ".kv" and flags & os.O_CREAT and self._at("open"):
            die()
        return fd

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if sum(map(len, buffers)) > 100 and self._at("write"):
            super().pwritev(fd, [buffers[0][: len(buffers[0]) // 2]], offset)
            die()
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        if self._at("sync"):  # only a compaction syncs
            die()
        super().fdatasync(fd)

    def unlink(self, path: Path) -> None:
        if self._at("unlink"):
            die()
        super().unlink(path)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # it may take a moment


class Asking(FakeEngine):
    """Samples a query at every tenth token, so that chunks are measured when bits go by sensitivity."""

    def take_queries(self, seq: int) -> Queries | None:
        g, n = self.info.geometry, self.length(seq)
        positions = np.arange(5, n, 10, dtype=np.int32)
        shape = (len(positions), g.n_layer, 2 * g.k_dim // g.head_dim_k, g.head_dim_k)
        return Queries(positions, np.random.default_rng(n).standard_normal(shape).astype(np.float16))


async def until_stopped(
    service: Service, engine: EngineThread, store: Store, socket: Path, stop: asyncio.Event
) -> list[str]:
    """Serve until ``stop`` is set, after printing "ready"; returns the problems found when idle."""
    await service.start()
    async with await serve(service, socket):
        print("ready", flush=True)
        await stop.wait()
    await service.wait_idle()
    problems = service.check()
    await service.stop()
    engine.close()
    return [*problems, *store.check().problems]


async def run_daemon(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    files = DeadlyFiles(Death(args.die_at, args.die_after)) if args.die_at else Files()
    bits = float(args.bits) if "." in args.bits else Precision(int(args.bits), int(args.bits))
    with Store(args.data_dir, master=MASTER, files=files, wal_limit=64 * 1024) as store:
        made = partial(Asking, CELLS, 8, geometry=GEOMETRY, end_rate=END_RATE, recurrent=args.recurrent)
        engine = EngineThread(made)
        adapters = tuple((path.name, path) for path in args.adapters)
        settings = service_settings(
            pool_bytes=4 << 20, bits=bits, prefill_slice=64, split="load_first", adapters=adapters
        )
        problems = await until_stopped(Service(engine, store, settings), engine, store, args.socket, stop)
    if problems:
        sys.exit("\n".join(problems))


# -- for the test that starts it


@dataclass
class Victim:
    """The daemon's process, for a test. ``said`` is what it wrote to stderr, which must be nothing."""

    process: subprocess.Popen[str]
    socket: Path
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # In a thread, because a full pipe would stop the daemon.
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr or []))
        self._reader.start()

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", f"the daemon did not start: {''.join(self.said)}"

    def end(self, signum: int) -> int:
        """Send the signal and wait for the daemon's end; returns its exit code. ``said`` is complete then."""
        self.process.send_signal(signum)
        code = self.process.wait(60)
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return code


def start(data_dir: Path, socket: Path, *options: str) -> Victim:
    """Start a daemon on the fake engine; it serves on return. The caller must ``end`` it."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in [str(Path(__file__).parents[2]), *sys.path] if p)}
    command = [sys.executable, __file__, "--data-dir", str(data_dir), "--socket", str(socket), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    victim = Victim(process, socket)
    try:
        victim.wait_ready()
    except BaseException:
        victim.end(signal.SIGKILL)
        raise
    return victim


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--bits", default="4", help="the same for all, or with a point, shared out")
    parser.add_argument("--adapters", type=Path, nargs="*", default=[])
    parser.add_argument("--recurrent", action="store_true", help="the engine's sequences cannot be cut")
    parser.add_argument("--die-at", choices=SITES)
    parser.add_argument("--die-after", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(run_daemon(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The daemon that is attacked: ``llmaas serve`` as it is, on the fake engine, with a probe in its event loop.

The engine takes as long as a small model on a small machine would, without computing: 8 ms for a step and 0.25 ms for
each of its tokens.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from llmaas.api.client import Client
from llmaas.api.daemon_address import admin_socket
from llmaas.cli import main as command
from llmaas.cli import runtime
from llmaas.cli.runtime import Runtime, running
from llmaas.config.settings import Config
from llmaas.engine.fake import FakeEngine
from llmaas.errors import LlmaasError
from llmaas.service.service import Service
from tests.stress.loop_probe import Board, LoopProbe

POOL_BYTES = 1 << 20
STEP_S, TOKEN_S = 0.003, 0.001
"""Seconds of a step, and of each token in it: three times as fast as SmolLM2-135M on two x86 cores (9.5 and 3.3 ms)."""
START_S = 30.0

_forks = multiprocessing.get_context("forkserver")
"""Processes begin as a copy of one that has imported everything already: dozens of daemons start in a minute."""
_forks.set_forkserver_preload(["tests.stress.hostile_daemon", "tests.stress.attacks.table"])


class SlowFake(FakeEngine):
    """Made as ``llmaas serve`` makes its engine."""

    def __init__(self, model: Path, *, n_cells: int, n_seqs: int, n_batch: int, **_: Any) -> None:
        super().__init__(n_cells, n_seqs, max_batch=n_batch, step_time=lambda tokens: STEP_S + TOKEN_S * tokens)


def _serve(board_path: Path, log: Path, most_files: int | None, arguments: list[str]) -> None:
    """The daemon's process."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    if most_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    board = Board(board_path)

    class TimedService(Service):
        async def stop(self) -> None:
            begun = time.monotonic()
            await super().stop()
            board.has_drained(time.monotonic() - begun)

    @asynccontextmanager
    async def probed(config: Config, **choices: Any) -> AsyncIterator[Runtime]:
        async with running(replace(config, repack="off"), SlowFake, **choices) as parts:  # type: ignore[arg-type]
            LoopProbe(board).start()
            yield parts

    runtime.Service = TimedService  # type: ignore[misc, attr-defined]
    runtime.running = probed  # type: ignore[assignment]
    sys.exit(command.main(arguments))


@dataclass
class Target:
    """A daemon that runs, for who attacks and measures it."""

    process: BaseProcess
    socket: Path
    scratch: Path
    """A directory for whatever an attack needs."""
    board: Board
    log: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def resident(self, what: str = "VmRSS") -> int:
        """Bytes of RAM that the process holds; VmHWM: held at most since ``forget_peak``."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(what + ":"):
                return int(line.split()[1]) * 1024
        return 0

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def terminate(self, within: float) -> float | None:
        """SIGTERM; seconds until the process has ended, None if it has not by then and was killed."""
        begun = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        self.process.join(within)
        if self.process.exitcode is not None:
            return time.monotonic() - begun
        self.process.kill()
        self.process.join()
        return None


def start_target(root: Path, *, most_files: int | None = None) -> Target:
    """Start a daemon in ``root``; it serves on return."""
    repository = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in [repository, *sys.path] if p)
    model, socket, board, log = root / "model.gguf", root / "d.sock", root / "board", root / "log"
    model.write_bytes(b"GGUF")
    scratch = root / "scratch"
    scratch.mkdir()
    files = {"--model": model, "--socket": socket, "--data-dir": root / "data", "--pool-bytes": POOL_BYTES}
    arguments = ["serve", *(str(word) for pair in files.items() for word in pair)]
    process = _forks.Process(target=_serve, args=(board, log, most_files, arguments))
    target = Target(process, socket, scratch, Board(board), log)
    process.start()
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.exitcode is None:
        try:
            with Client(admin_socket(socket), app="starter"):
                return target
        except LlmaasError:
            time.sleep(0.01)
    process.kill()
    raise RuntimeError(f"the daemon did not start: {log.read_text('utf-8')}")


def start_process(do: Any, *args: Any) -> BaseProcess:
    """A function in a process of its own."""
    process = _forks.Process(target=do, args=args)
    process.start()
    return process


def an_event() -> Any:
    """For ``start_process``."""
    return _forks.Event()

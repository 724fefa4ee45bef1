"""Threads of a step run on CPUs of their own for the time of the step, and where they may run is as before after it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import ggml_function
from llmaas.engine.llama.openmp import MANY_TOKENS
from llmaas.engine.llama.threads_apart import ThreadsApart

PARALLEL = ggml_function("GOMP_parallel")
built = pytest.mark.skipif(PARALLEL is None, reason="llama.cpp is built without GNU OpenMP")
Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Parallel = ctypes.CFUNCTYPE(None, Function, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


@pytest.fixture
def cpus() -> Iterator[set[int]]:
    """Two CPUs, all that this thread, and OpenMP's that it starts, may use."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("there is one CPU")
    two = set(sorted(before)[:2])
    os.sched_setaffinity(0, two)
    yield two
    os.sched_setaffinity(0, before)
    places(2, before)


def places(n_threads: int, to: set[int] | None = None) -> list[set[int]]:
    """The CPUs that each thread of a team may use; first they are given those of ``to``, if it is there."""
    found = list[set[int]]()

    def look(_data: object) -> None:
        if to is not None:
            os.sched_setaffinity(0, to)
        found.append(os.sched_getaffinity(0))

    Parallel(PARALLEL)(Function(look), None, n_threads, 0)
    return found


@built
def test_each_thread_has_a_cpu_of_its_own_during_a_step_only(cpus: set[int]) -> None:
    places(2, cpus)
    apart = ThreadsApart(PARALLEL)
    for _ in range(3):
        with apart.during_step(2):
            inside = places(2)
            assert [len(each) for each in inside] == [1, 1]
            assert set.union(*inside) == cpus
        assert places(2) == [cpus, cpus]
    with pytest.raises(RuntimeError), apart.during_step(2):
        raise RuntimeError
    assert places(2) == [cpus, cpus]


@built
def test_nothing_happens_unless_there_are_as_many_cpus_as_threads(cpus: set[int]) -> None:
    places(2, cpus)
    apart = ThreadsApart(PARALLEL)
    with apart.during_step(1):
        assert os.sched_getaffinity(0) == cpus
    with apart.during_step(3):
        assert os.sched_getaffinity(0) == cpus
    for without in (ThreadsApart(None), ThreadsApart(PARALLEL, None)):
        with without.during_step(2):
            assert places(2) == [cpus, cpus]


@built
def test_only_steps_of_many_tokens_keep_threads_apart_and_compute_the_same(
    gguf: Path, cpus: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()
    during = ThreadsApart.during_step
    monkeypatch.setattr(ThreadsApart, "during_step", lambda self, n: asked.append(n) or during(self, n))
    engine = LlamaEngine(gguf, n_cells=512, n_threads=2)
    tokens = list(range(100, 100 + MANY_TOKENS))
    found = []
    for apart in (False, True):
        engine.set_threads(2, apart=apart)
        engine.set_sampler(0, Sampling())
        engine.step([BatchItem(0, 0, tokens, 0)])
        found.append(engine.logits().tobytes())
        engine.step([BatchItem(0, len(tokens), [100])])
        engine.drop(0, 0)
    assert found[0] == found[1]
    assert asked == [2]
    engine.close()

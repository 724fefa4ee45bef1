"""That niceness and CPUs reach the threads that compute; the engine's threads, as the kernel sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmaas.calls import Sampling
from llmaas.clock import ManualClock
from llmaas.engine.adaptive_threads import AdaptiveThreads
from llmaas.engine.base import BatchItem
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.errors import MachineError
from llmaas.host import priority as host
from llmaas.host.thread_priority import lower_cpu_priority
from llmaas.planner.events import DutyChanged
from llmaas.policies.duty import ThermalReading
from llmaas.service.host_share import HostShare

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux has niceness and CPUs by thread")

LOAD = """
import os, sys, threading
from pathlib import Path
from llmaas.host import priority
from llmaas.cli.runtime import load_engine
from llmaas.config.sources import load
from llmaas.engine.base import BatchItem
from llmaas.engine.thread import EngineThread
cpu = min(os.sched_getaffinity(0))
config = load({"cells": "256", "sequences": "8", "threads": "2", "cpus": str(cpu), "nice": "7"}, {"HOME": "/"}).config
niceness = max(7, os.getpriority(os.PRIO_PROCESS, 0))  # the tests may be nicer already
priority.lower_priority(config.nice)
before = {t.name for t in Path("/proc/self/task").iterdir()}
thread = EngineThread(lambda: load_engine(config, Path(sys.argv[1])))
thread.submit(thread.engine.step, [BatchItem(0, 0, list(range(32)))]).result()
started = [t for t in Path("/proc/self/task").iterdir() if t.name not in before]
assert len(started) >= 2, "the engine's thread, and llama.cpp's"
for task in Path("/proc/self/task").iterdir():
    # proc(5): the niceness is the 19th field, the 17th after the name in parentheses
    assert int((task / "stat").read_text().rpartition(") ")[2].split()[16]) == niceness, task
for task in started:
    assert os.sched_getaffinity(int(task.name)) == {cpu}, task
assert os.sched_getaffinity(0) == set(map(int, sys.argv[2].split(",")))
thread.close()
"""


@linux
def test_the_engines_threads_are_nice_and_stay_on_their_cpus(gguf: Path) -> None:
    allowed = ",".join(map(str, os.sched_getaffinity(0)))
    environ = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(gguf), allowed], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@linux
def test_a_thread_that_is_nicer_already_is_not_made_less_so() -> None:
    code = (
        "import os; from llmaas.host.thread_priority import lower_cpu_priority;"
        "before = os.nice(15); lower_cpu_priority(); assert os.getpriority(os.PRIO_PROCESS, 0) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    thread = EngineThread(FakeEngine)
    thread.submit(lower_cpu_priority).result(10)
    assert thread.submit(os.getpriority, os.PRIO_PROCESS, 0).result(10) >= 10
    thread.close()


@linux
def test_threads_that_end_meanwhile_are_no_failure() -> None:
    program = """
import threading
from llmaas.host import priority

def begin_threads():
    while True:
        threading.Thread(target=int).start()

threading.Thread(target=begin_threads, daemon=True).start()
for _ in range(2000):
    priority.lower_priority(0)
print("all well", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "all well\n", done.stderr[-500:]


@linux
def test_a_cpu_that_is_not_there_is_told() -> None:
    with pytest.raises(MachineError, match="cannot compute on CPUs 9999"):
        host.bind((9999,))


def test_steps_tell_the_engine_a_new_number_of_threads_only_when_it_changes() -> None:
    told: list[int] = []

    class Told(FakeEngine):
        def set_threads(self, n: int, *, spin: bool = False, apart: bool = False) -> None:
            super().set_threads(n, spin=spin, apart=apart)
            told.append(n)

    engine = Told()
    times = iter(range(1 << 30))
    seconds = {1: 0.02, 2: 0.4}
    now = [0.0]

    def clock() -> float:
        """Every second reading ends a step, which takes what its threads make it take; 10 ms on the quiet machine."""
        if next(times) % 2:
            now[0] += seconds[adaptive.decode.threads] if engine.length(0) > 50 else 0.01
        return now[0]

    engine.set_sampler(0, Sampling())
    adaptive = AdaptiveThreads(engine, 2, clock, lambda: None)
    for position in range(60):
        adaptive.step([BatchItem(0, position, [7], 0)])
    assert told == [1, 2, 1], "one look on the quiet machine, then the neighbour came"
    assert adaptive.snapshot() == {"most": 2, "decode": 1, "prefill": 2, "changes": 1}


def test_a_hot_machine_is_a_smaller_duty_told_once_per_change() -> None:
    clock, told = ManualClock(), list[DutyChanged]()
    shared = HostShare(FakeEngine(), None, clock)
    for celsius in (60.0, 60.0, 97.0, 97.0):
        shared.on_reading(ThermalReading(celsius, 95.0, "cpu"), told.append)
        clock.advance(2.0)
    assert told == [DutyChanged(0.8), DutyChanged(pytest.approx(0.6))]
    snapshot = shared.snapshot()
    assert snapshot["threads"] == "fixed"
    assert snapshot["governor"] == {
        "watched": True,
        "duty": pytest.approx(0.6),
        "why": "heat",
        "zone": "cpu",
        "celsius": 97.0,
        "limit_celsius": 95.0,
    }

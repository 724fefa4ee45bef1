"""That the slices of threads become shorter where the kernel has such a thing, and that nothing fails elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from llmaas.host import time_slice

ASK = """
import os, threading
from llmaas.host.time_slice import SLICE_NS, shorten_slices, slice_ns
os.nice(3)
before = slice_ns()
shorten_slices()
assert os.getpriority(os.PRIO_PROCESS, 0) >= 3, "the niceness stays"
found = [slice_ns()]
thread = threading.Thread(target=lambda: found.append(slice_ns()))
thread.start()
thread.join()
assert found in ([SLICE_NS] * 2, [before] * 2), (before, found)
print(*found)
"""
ALONE = """
from llmaas.host.time_slice import SLICE_NS, StepSlices, shorten_slices, slice_ns
before = slice_ns()
slices = StepSlices()
slices(1)
assert slice_ns() == before, "it never asked for others"
shorten_slices()
short = slice_ns()
for n_threads in (2, 1, 1, 2, 1):
    slices(n_threads)
    assert slice_ns() == (before if n_threads == 1 else short), n_threads
"""
LEFT_ALONE = """
import os
from llmaas.host.time_slice import shorten_slices, slice_ns
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
before = slice_ns()
shorten_slices()
assert slice_ns() == before and os.sched_getscheduler(0) == os.SCHED_IDLE
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has slices by thread")
@pytest.mark.parametrize("code", [ASK, ALONE, LEFT_ALONE])
def test_a_thread_and_those_that_it_starts_have_shorter_slices(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_machine_whose_system_calls_are_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert time_slice.slice_ns() is None
    time_slice.shorten_slices()

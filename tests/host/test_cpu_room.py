"""How many CPUs there is room on: what /proc/stat says is idle, and what this process uses."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from llmaas.clock import ManualClock
from llmaas.host.cpu_room import CpuRoom, idle_s

TICKS = os.sysconf("SC_CLK_TCK")


def stat(**idle_seconds: float) -> str:
    rows = [f"{cpu} 5 0 5 {int(seconds * TICKS)} 0 0 0 0 0 0" for cpu, seconds in idle_seconds.items()]
    return "\n".join(["cpu  10 0 10 99999 0 0 0 0 0 0", *rows, "intr 5 5 5", "cpu9 is no line of a CPU"]) + "\n"


def test_only_this_process_cpus_count_and_waiting_for_disks_is_idle_time() -> None:
    assert idle_s(stat(cpu0=3, cpu1=5, cpu10=100), {1}) == 5.0
    assert idle_s(stat(cpu0=3, cpu1=5), {0, 1, 7}) == 8.0
    assert idle_s(f"cpu  0\ncpu0 1 1 1 {2 * TICKS} {TICKS}\n", {0}) == 3.0


def test_what_others_leave_idle_is_room(tmp_path: Path) -> None:
    file, cpu = tmp_path / "stat", f"cpu{min(os.sched_getaffinity(0))}"
    file.write_text(stat(**{cpu: 10.0}))
    clock = ManualClock()
    room = CpuRoom(clock, file)
    assert room.read() is None, "no time has passed"
    clock.advance(10.0)
    file.write_text(stat(**{cpu: 110.0}))
    cpus = room.read()
    assert cpus is not None
    assert 9.99 < cpus < 11.0


def test_what_the_process_itself_uses_is_room(tmp_path: Path) -> None:
    file = tmp_path / "stat"
    file.write_text(stat(**{f"cpu{min(os.sched_getaffinity(0))}": 10.0}))
    clock = ManualClock()
    room, begin = CpuRoom(clock, file), time.process_time()
    while time.process_time() - begin < 0.2:
        pass
    clock.advance(0.1)
    cpus = room.read()
    assert cpus is not None
    assert cpus > 1.5


def test_after_a_while_of_doing_nothing_it_counts_who_runs_now(tmp_path: Path) -> None:
    """Others took all of the CPUs for a minute, and have just ended; or they have just begun."""
    cpus = {f"cpu{n}": 10.0 for n in os.sched_getaffinity(0)}
    file, clock = tmp_path / "stat", ManualClock()
    file.write_text(stat(**cpus).replace("cpu9 is no line of a CPU\n", "procs_running 1\n"))
    room = CpuRoom(clock, file)
    clock.advance(60.0)
    assert room.read() == len(cpus), "on average there was none"
    file.write_text(stat(**dict.fromkeys(cpus, 70.0)) + "procs_running 2\n")
    clock.advance(60.0)
    assert room.read() == pytest.approx(len(cpus), rel=0.1), "other CPUs are told of: what runs there takes nothing"
    file.write_text(stat(**dict.fromkeys(cpus, 130.0)).replace("cpu9 is no line of a CPU\n", "procs_running 2\n"))
    clock.advance(60.0)
    assert room.read() == len(cpus) - 1


@pytest.mark.parametrize("text", [None, "", "cpu0 x y z a b\n", "cpu0 1\n", stat(cpu999=1.0)])
def test_where_the_system_does_not_tell_nothing_is_known(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "stat"
    if text is not None:
        file.write_text(text)
    clock = ManualClock()
    room = CpuRoom(clock, file)
    clock.advance(1.0)
    assert room.read() is None

"""Clocks: the real one runs forward, the manual one when told, and nobody else asks what time it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import llmaas
from llmaas.clock import ManualClock, RealClock

ROOT = Path(llmaas.__file__).parent
READ_A_CLOCK = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"}


def test_a_manual_clock_moves_only_forward_and_only_when_told() -> None:
    clock = ManualClock(now=5.0, wall=100.0)
    assert (clock.now(), clock.wall()) == (5.0, 100.0)
    clock.advance(1.5)
    assert (clock.now(), clock.wall()) == (6.5, 101.5)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_the_real_clock_does_not_run_backwards() -> None:
    clock = RealClock()
    readings = [clock.now() for _ in range(1000)]
    assert readings == sorted(readings)
    assert clock.wall() > 1_700_000_000


def test_only_the_clock_asks_for_the_time_and_one_function_measures_speed() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.ImportFrom) and node.module == "time" else []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                names = [node.attr]
            if READ_A_CLOCK & set(names):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"clock.py", "kvchunks/store/cipher.py"}

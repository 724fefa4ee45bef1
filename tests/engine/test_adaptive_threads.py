"""The engine's threads follow the room that there is on the CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest

from llmaas.engine.adaptive_threads import AdaptiveThreads
from llmaas.engine.base import BatchItem, Engine, Row


class TimedEngine:
    """Two CPUs, of which others take ``busy``; a step advances its clock."""

    def __init__(self) -> None:
        self.threads, self.busy, self.now = 2, 0.0, 100.0
        self.spin = self.apart = False

    def set_threads(self, n: int, *, spin: bool, apart: bool) -> None:
        self.threads, self.spin, self.apart = n, spin, apart

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        waits = self.threads > 2 - self.busy
        self.now += 0.05 * sum(len(item.tokens) for item in items) / self.threads * (5.0 if waits else 1.0)
        return [None] * len(items)

    def room(self) -> float:
        return float(2 - self.busy)


def run(seconds: float, engine: TimedEngine, threads: AdaptiveThreads, n_tokens: int) -> None:
    end = engine.now + seconds
    while engine.now < end:
        threads.step([BatchItem(0, 100, [1] * n_tokens)])


@pytest.mark.parametrize("n_tokens", [1, 4])
def test_decode_and_prefill_give_a_cpu_up_and_take_it_back_when_it_is_free(n_tokens: int) -> None:
    engine = TimedEngine()
    threads = AdaptiveThreads(cast(Any, engine), 2, lambda: engine.now, engine.room)
    run(2.0, engine, threads, n_tokens)
    assert engine.threads == 2
    engine.busy = 1
    run(3.0, engine, threads, n_tokens)
    assert engine.threads == 1
    engine.busy = 0
    run(1.0, engine, threads, n_tokens)
    assert engine.threads == 2


def test_whoever_asks_is_told_the_threads_of_the_next_steps() -> None:
    engine, told = TimedEngine(), list[int]()
    threads = AdaptiveThreads(cast(Any, engine), 2, lambda: engine.now, engine.room, told.append)
    run(2.0, engine, threads, 1)
    assert told[-1] == engine.threads == 2, "after a look at one"
    engine.busy = 1
    run(3.0, engine, threads, 1)
    assert told[-1] == engine.threads == 1
    only = AdaptiveThreads(cast(Any, engine), 1, lambda: engine.now, engine.room, told.append)
    told.clear()
    run(2.0, engine, only, 1)
    assert told == [1]


def test_an_engine_with_one_thread_does_not_ask_for_room() -> None:
    engine, asked = TimedEngine(), list[float]()

    def room() -> None:
        asked.append(engine.now)

    threads = AdaptiveThreads(cast(Engine, engine), 1, lambda: engine.now, room)
    run(2.0, engine, threads, 1)
    assert not asked


def test_threads_spin_in_prefill_while_each_has_a_cpu() -> None:
    engine = TimedEngine()
    threads = AdaptiveThreads(cast(Any, engine), 2, lambda: engine.now, engine.room)
    threads.step([BatchItem(0, 100, [1] * 8)])
    assert not engine.spin, "nothing is known yet"
    run(1.0, engine, threads, 8)
    assert engine.spin
    threads.step([BatchItem(0, 100, [1])])
    assert not engine.spin, "decode steps spin by themselves"
    for busy, spins, crowded in ((0.1, True, False), (0.6, False, True), (0.0, True, False)):
        engine.busy = busy
        run(1.0, engine, threads, 8)
        assert (engine.spin, threads.crowded) == (spins, crowded)


def test_threads_share_no_cpu_in_prefill_beside_one_busy_program() -> None:
    """Not beside more of them, whose time they would wait for, nor where each has a CPU or nothing is known."""
    engine = TimedEngine()
    threads = AdaptiveThreads(cast(Any, engine), 2, lambda: engine.now, engine.room)
    threads.step([BatchItem(0, 100, [1] * 8)])
    assert not engine.apart
    for busy, apart in ((0.1, False), (0.5, True), (0.0, False), (1.2, False), (0.9, True)):
        engine.busy, threads.prefill.threads = busy, 2
        engine.now += 0.3
        threads.step([BatchItem(0, 100, [1] * 8)])
        assert engine.apart == apart
    engine.now += 1.0
    threads.step([BatchItem(0, 100, [1] * 8)])
    assert not engine.apart, "who computes now may have begun just now, or have ended"
    engine.now += 0.3
    threads.step([BatchItem(0, 100, [1] * 8)])
    assert engine.apart
    threads.step([BatchItem(0, 100, [1])])
    assert not engine.apart, "a thread that decodes alone goes where there is room"


def test_threads_do_not_spin_in_prefill_where_the_room_is_not_known() -> None:
    engine = TimedEngine()
    threads = AdaptiveThreads(cast(Any, engine), 2, lambda: engine.now, lambda: None)
    run(2.0, engine, threads, 8)
    assert not engine.spin and not threads.crowded

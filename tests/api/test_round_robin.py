"""Frames take turns, by app, in slices of the loop's time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from llmaas.api.round_robin import SLICE_S, RoundRobin
from tests.support.loop import on_a_loop
from tests.support.scripted import until


class Source:
    def __init__(self, app: str, n: int, log: list[str], seconds: float = 0.0) -> None:
        self.app, self.n, self.log, self.seconds = app, n, log, seconds

    def handle_next(self) -> bool:
        if not self.n:
            return False
        time.sleep(self.seconds)
        self.n -= 1
        self.log.append(self.app)
        return True


@on_a_loop
async def test_who_is_alone_is_served_at_once() -> None:
    frames, log = RoundRobin(), list[str]()
    frames.ready(Source("a", 1, log))
    assert log == ["a"]


@on_a_loop
async def test_an_app_with_many_connections_has_one_turn_like_the_others() -> None:
    frames, log = RoundRobin(), list[str]()
    for app in ("greedy", "greedy", "greedy", "modest"):
        frames.later(Source(app, 3, log))
    await until(lambda: len(log) >= 12)
    assert log == ["greedy", "modest"] * 3 + ["greedy"] * 6


@on_a_loop
async def test_the_loop_goes_on_after_a_slice() -> None:
    frames, log, gaps = RoundRobin(), list[str](), list[float]()
    frames.ready(Source("a", 50, log, SLICE_S / 4))
    while len(log) < 50:
        began, before = time.perf_counter(), len(log)
        await asyncio.sleep(0)
        gaps.append(time.perf_counter() - began)
        assert len(log) - before <= 5
    assert len(gaps) >= 8


@on_a_loop
async def test_while_frames_wait_the_loop_rests() -> None:
    frames, log = RoundRobin(), list[str]()
    frames.ready(Source("modest", 1, log))
    assert await worked(frames, log, 20) < 0.5


@on_a_loop
async def test_frames_of_an_app_that_is_alone_do_not_rest() -> None:
    frames, log = RoundRobin(), list[str]()
    assert max([await worked(frames, log, 50) for _ in range(3)]) > 0.5
    frames.ready(Source("modest", 1, log))
    assert await worked(frames, log, 20) < 0.5, "not alone any more"


@on_a_loop
async def test_a_frame_of_an_app_that_has_none_waiting_does_not_wait_for_the_end_of_a_rest() -> None:
    frames, log = RoundRobin(), list[str]()
    frames.ready(Source("modest", 1, log))
    spin(frames, "greedy", log, 1000)
    for _ in range(5):
        await asyncio.sleep(0.005)
        before = log.count("modest")
        frames.ready(Source("modest", 1, log))
        for _ in range(2):
            await asyncio.sleep(0)
        assert log.count("modest") == before + 1
    assert log.count("greedy") < 500


async def worked(frames: RoundRobin, log: list[str], n: int) -> float:
    """The part of the time that the loop's thread works while an app's frames wait, and it could have a CPU."""
    cpu, began, end = time.thread_time(), time.perf_counter() - waited_for_cpu(), len(log) + n
    spin(frames, "greedy", log, n)
    await until(lambda: len(log) >= end)
    return (time.thread_time() - cpu) / (time.perf_counter() - waited_for_cpu() - began)


def waited_for_cpu() -> float:
    """Seconds that this thread was ready while others had the CPUs; 0 where the kernel does not say."""
    try:
        return 1e-9 * int(Path("/proc/thread-self/schedstat").read_text("ascii").split()[1])
    except OSError:
        return 0.0


def spin(frames: RoundRobin, app: str, log: list[str], n: int) -> None:
    """Frames that take the interpreter for a slice each."""
    frames.later(Spinning(app, n, log, SLICE_S))


class Spinning(Source):
    def handle_next(self) -> bool:
        until = time.thread_time() + self.seconds
        while self.n and time.thread_time() < until:
            pass
        self.n -= self.n > 0
        self.log.append(self.app)
        return self.n > 0

"""How many threads the engine gets, on made-up machines: it gives way, comes back, and costs a quiet one nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.policies.thread_count import ThreadCount


def pace(threads: int) -> float:
    """Seconds of a step that has a core for each thread."""
    return 0.015 / threads**0.9


class Machine:
    """Cores, and processes that take some of them from second to second, as ``busy`` says."""

    def __init__(self, cores: int, busy: Callable[[float], int], noise: float = 0.03) -> None:
        self.count, self.cores, self.busy, self.noise = ThreadCount(cores, curious=True), cores, busy, noise
        self.random = random.Random(1)
        self.now = 0.0

    def step(self) -> float:
        threads = self.count.threads
        seconds = pace(threads) * self.random.lognormvariate(0, self.noise)
        if threads > max(1, self.cores - self.busy(self.now)):  # one waits for its core, and all for that one
            seconds *= self.random.choice([1.5, 1.8, 2.2, 3.0, 20.0, 40.0])
        self.now += seconds
        self.count.observe("decode", seconds)
        return seconds

    def speed(self, seconds: float) -> float:
        """Steps a second over the next ``seconds``."""
        begin, n = self.now, 0
        while self.now - begin < seconds:
            self.step()
            n += 1
        return n / (self.now - begin)


def test_a_quiet_machine_loses_less_than_half_a_percent() -> None:
    adaptive, fixed = Machine(2, lambda t: 0), Machine(2, lambda t: 0)
    fixed.count = ThreadCount(1)  # never moves
    fixed.count.threads = 2
    fixed.count.observe = lambda kind, seconds: 2  # type: ignore[method-assign]
    assert adaptive.speed(120.0) > 0.995 * fixed.speed(120.0)
    assert adaptive.count.changes == 0


def test_a_busy_neighbour_is_given_way_within_a_second_and_its_core_is_taken_back_when_it_ends() -> None:
    machine = Machine(2, lambda t: int(20 <= t < 100))
    machine.speed(20.0)
    assert machine.count.threads == 2
    machine.speed(1.0)
    assert machine.count.threads == 1
    assert machine.speed(75.0) > 0.97 / pace(1)
    machine.speed(100.0 + 30.0 - machine.now)
    assert machine.count.threads == 2


def test_of_many_cores_those_that_are_free_are_used() -> None:
    machine = Machine(8, lambda t: 3 if 20 <= t < 100 else 0)
    machine.speed(22.0)
    assert machine.count.threads <= 5
    assert machine.speed(70.0) > 0.95 / pace(5)
    machine.speed(40.0)
    assert machine.speed(20.0) > 0.98 / pace(8)


def test_a_daemon_that_starts_on_a_busy_machine_finds_out() -> None:
    machine = Machine(2, lambda t: 1)
    machine.speed(3.0)
    assert machine.speed(30.0) > 0.95 / pace(1)


def test_however_slow_it_is_there() -> None:
    """Steady steps of a second raise no alarm, and a look that loses as much could not be paid for in minutes."""
    count, steps = ThreadCount(2, curious=True), 0
    while count.threads == 2 or steps < 10:
        count.observe("decode", 1.0 if count.threads == 2 else 0.02)
        steps += 1
    assert steps == 10 and count.changes == 1


def test_steps_that_are_slower_for_another_reason_keep_their_threads() -> None:
    """A context that is five times as long: fewer threads make it no better, and it is the measure from then on."""
    count = ThreadCount(2)
    for _ in range(200):
        count.observe("decode", 0.008)
    few = 0
    for _ in range(2000):
        few += count.threads == 1
        count.observe("decode", 0.04 if count.threads == 2 else 0.075)
    assert count.threads == 2 and count.changes == 0
    assert few <= 6


def test_long_steps_are_not_tried_with_fewer_threads_before_that_is_earned() -> None:
    count = ThreadCount(2)
    for _ in range(300):
        assert count.observe("prefill", 0.6) == 2


@given(st.integers(1, 16), st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 100.0)), max_size=200))
def test_whatever_steps_take_there_is_a_thread_and_never_one_too_many(
    most: int, steps: list[tuple[str, float]]
) -> None:
    count = ThreadCount(most)
    for kind, seconds in steps:
        assert count.observe(kind, seconds) == count.threads
        assert 1 <= count.threads <= most


@settings(deadline=None, max_examples=25)  # a busy machine is no failure
@given(st.integers(2, 8), st.integers(0, 2**32))
def test_what_looking_around_may_lose_is_bounded(cores: int, seed: int) -> None:
    """On a quiet machine, time lost is at most the share of looks down, and their credit."""
    machine = Machine(cores, lambda t: 0)
    machine.random.seed(seed)
    lost = 0.0
    while machine.now < 60.0:
        threads = machine.count.threads
        took = machine.step()
        lost += max(0.0, took * (1.0 - pace(cores) / pace(threads)))
    assert lost <= 0.05 + 0.0025 * 60.0


def test_a_short_disturbance_is_forgotten_in_a_second() -> None:
    """The daemon's own swap-out is such: the first slow steps are paid out of what the budget has saved up."""
    count, now, fewer = ThreadCount(2), 0.0, 0.0
    while now < 10.0:
        seconds = pace(count.threads) * (2.5 if count.threads == 2 and 5.0 <= now < 5.2 else 1.0)
        fewer += seconds * (count.threads == 1 and now > 5.0)
        now += seconds
        count.observe("decode", seconds)
    assert 0.1 < fewer < 1.0
    assert count.threads == 2


class WatchedMachine(Machine):
    """The count is told four times a second how many CPUs there was room on."""

    def step(self) -> float:
        before = self.now
        seconds = super().step()
        if int(self.now * 4) > int(before * 4):
            self.count.see_room(float(max(1, self.cores - self.busy(self.now))))
        return seconds


def test_room_that_comes_back_is_used_within_a_second_whatever_was_lost_before() -> None:
    machine = WatchedMachine(2, lambda t: int(t % 40 < 30))
    for _ in range(4):
        machine.speed(40.0 - machine.now % 40.0 + 31.0)
        assert machine.count.threads == 2
        machine.speed(1.0)


def test_without_room_trials_upward_lose_next_to_nothing() -> None:
    machine = WatchedMachine(2, lambda t: 1)
    machine.speed(3.0)
    assert machine.speed(60.0) > 0.985 / pace(1)


def crowded_count() -> ThreadCount:
    """Of two threads that had room, and lack some in their last step, which was slow."""
    count = ThreadCount(2)
    for _ in range(30):
        count.observe("decode", 0.01)
    count.see_room(1.3)
    count.observe("decode", 0.03)
    return count


def test_what_was_saved_while_there_was_room_is_not_spent_where_there_is_none() -> None:
    count = crowded_count()
    for _ in range(300):  # 4 seconds
        assert count.observe("decode", 0.012) == 1


def test_threads_that_lack_cpus_are_given_up_after_a_slow_step_or_two() -> None:
    count = crowded_count()
    assert count.in_trial
    assert count.threads == 1


def test_a_quiet_machine_that_is_watched_keeps_its_threads() -> None:
    machine = WatchedMachine(4, lambda t: 0)
    machine.speed(60.0)
    assert machine.count.changes == 0


def test_a_disturbance_too_short_to_be_seen_costs_no_whole_answer() -> None:
    """Seen beside a busy minute that was over: what it lost left no budget to try two threads again, and the daemon
    answered for seconds with one, on a machine with room for two."""
    for trouble_s in (0.1, 0.2, 0.4, 0.9):
        count, now, fewer = ThreadCount(2, curious=True), 0.0, 0.0
        for _ in range(1500):
            disturbed = now % 5.0 < trouble_s
            seconds = pace(count.threads) * (3.0 if count.threads == 2 and disturbed else 1.0)
            fewer += seconds * (count.threads == 1 and not disturbed)
            if int((now + seconds) * 4) > int(now * 4):
                count.see_room(1.97)
            now += seconds
            count.observe("decode", seconds)
        assert fewer < 0.15 * now, trouble_s
        assert count.threads == 2


def test_room_that_helps_nobody_is_seldom_tried() -> None:
    """Two CPUs that share what computes: there is room for both, and one thread is faster."""
    count, now, lost = ThreadCount(2, curious=True), 0.0, 0.0
    while now < 60.0:
        seconds = pace(1) * (1.0 if count.threads == 1 else 1.4)
        if int((now + seconds) * 4) > int(now * 4):
            count.see_room(2.0)
        now += seconds
        lost += seconds - pace(1)
        count.observe("decode", seconds)
    assert lost < 0.03 * now
    assert count.threads == 1

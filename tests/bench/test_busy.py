"""Figures of the bench of busy machines, from raw numbers, and processes that are busy only while they are wanted."""

from __future__ import annotations

import time

import pytest

from bench.busy import LLMAAS, ONE_THREAD, PLACES, SERVER, Turn, bars_of, fair_share, row, turn
from bench.lib.neighbour import Busy


def test_one_thread_is_due_its_part_of_a_core_and_never_more_than_one() -> None:
    assert [fair_share(2, busy) for busy in PLACES] == [1.0, 1.0, pytest.approx(2 / 3), 0.4]
    assert fair_share(8, 4) == 1.0
    assert fair_share(1, 3) == 0.25


def test_a_turn_is_split_at_its_first_token() -> None:
    found = turn(100, [2.0, 2.5, 3.0], [1.0, 0.5])
    assert found == Turn(prefill=50.0, decode=2.0, prefill_cpu=100.0, decode_cpu=4.0)
    with pytest.raises(RuntimeError, match="ended its answer"):
        turn(100, [2.0], [1.0, 0.5])


def test_the_fair_share_is_of_the_speed_while_the_thread_runs() -> None:
    """The kernel gave the bare loop half of what it was due: the bar stays where it was."""
    found = {(4, LLMAAS): [Turn(36.0, 9.0, 90.0, 22.5)], (4, ONE_THREAD): [Turn(20.0, 5.0, 100.0, 25.0)]}
    figures = row(found, 4, 2)
    assert figures["prefill"]["fair_share_tps"]["median"] == 40.0
    assert figures["prefill"]["one_thread_cores"] == 0.2
    assert figures["prefill"]["over_fair_share"] == 0.9
    assert figures["decode"]["over_fair_share"] == 0.9
    assert "over_llama_server" not in figures["prefill"]
    assert [bar.holds for bar in bars_of("m", [figures])] == [False, False]


def test_ratios_are_taken_within_rounds() -> None:
    ours, theirs = [Turn(10, 2, 10, 2), Turn(40, 8, 10, 2), Turn(90, 18, 9, 2)], [Turn(10, 1, 9, 1)] * 3
    alone = [Turn(20, 4, 20, 4), Turn(40, 8, 40, 8), Turn(30, 6, 30, 6)]
    figures = row({(1, LLMAAS): ours, (1, SERVER): theirs, (1, ONE_THREAD): alone}, 1, 2)
    assert figures["prefill"]["over_fair_share"] == 1.0  # of 0.5, 1 and 3
    assert figures["prefill"]["over_llama_server"] == 4.0
    assert len(bars_of("m", [figures])) == 4
    assert all(bar.holds for bar in bars_of("m", [figures]))


def test_llama_server_is_compared_with_the_turn_beside_its_own() -> None:
    """It has one turn a round beside others, where llmaas and one thread have three."""
    ours = [Turn(10, 2, 10, 2), Turn(99, 9, 99, 9), Turn(99, 9, 99, 9)] * 2
    found = {(4, LLMAAS): ours, (4, ONE_THREAD): ours, (4, SERVER): [Turn(5, 1, 5, 1)] * 2}
    assert row(found, 4, 2)["prefill"]["over_llama_server"] == 2.0


def test_a_tie_is_not_below_and_what_noise_does_not_explain_is() -> None:
    alone = [Turn(10, 2, 10, 2)] * 5
    theirs = [Turn(100, 20, 50, 10)] * 5

    def holds(ours: list[float], busy: int = 0) -> bool:
        turns = {LLMAAS: [Turn(each, 40, each, 40) for each in ours], SERVER: theirs, ONE_THREAD: alone}
        return bars_of("m", [row({(busy, way): of_way for way, of_way in turns.items()}, busy, 2)])[1].holds

    assert holds([97, 99.5, 103, 96, 104])
    assert not holds([97, 99.5, 103, 96, 104], busy=1), "there it is to be ahead"
    assert not holds([94, 93, 95, 94, 96])
    assert not holds([99, 99, 99, 99, 99])


def test_processes_are_busy_only_while_they_are_wanted() -> None:
    def used(pid: int) -> float:
        before = time.clock_gettime(~pid << 3 | 2)
        time.sleep(0.3)
        return time.clock_gettime(~pid << 3 | 2) - before

    busy = Busy(2)
    first, second = busy.pids
    try:
        with busy.hashing(1):
            assert used(first) > 0.0
            assert used(second) == 0.0
        assert used(first) < 0.01  # it may be about to stop
        assert used(second) == 0.0
        with busy.hashing(2):
            assert min(used(first), used(second)) > 0.0
    finally:
        busy.close()

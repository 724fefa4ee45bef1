from __future__ import annotations

from llmaas.front.restart_pause import FIRST_PAUSE_S, LONGEST_PAUSE_S, RestartPause


def test_a_process_that_never_starts_is_started_ever_more_seldom() -> None:
    pauses = RestartPause()
    found = [pauses.after_end(None, 0.0) for _ in range(9)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (FIRST_PAUSE_S, LONGEST_PAUSE_S)


def test_one_that_works_for_a_while_between_two_ends_is_started_at_once_each_time() -> None:
    pauses = RestartPause()
    assert [pauses.after_end(1.5, 4.0) for _ in range(5)] == [0.0] * 5


def test_one_that_ends_soon_after_each_start_is_not() -> None:
    pauses = RestartPause()
    assert pauses.after_end(10.0, 15.0) == 0.0
    assert [pauses.after_end(10.0, 15.0) for _ in range(3)] == [1.0, 2.0, 4.0], "15 s is little after a start of 10"
    assert pauses.after_end(10.0, 21.0) == 0.0


def test_a_failed_start_after_a_good_one_waits() -> None:
    pauses = RestartPause()
    assert pauses.after_end(1.0, 100.0) == 0.0
    assert pauses.after_end(None, 0.0) == 2 * FIRST_PAUSE_S

"""What bench.overhead compares with: both bare processes of the same round."""

from __future__ import annotations

from bench.overhead import Speed, ratio_to_bare


def speeds(*decode: float) -> list[Speed]:
    return [Speed(prefill=1.0, decode=each) for each in decode]


def test_a_way_is_compared_with_the_mean_of_both_bare_processes_of_its_round() -> None:
    found = {"bare": speeds(100, 50, 200), "again": speeds(110, 60, 180), "socket": speeds(105, 54, 380)}
    assert ratio_to_bare(found, "socket", "decode") == 1.0
    assert ratio_to_bare(found, "socket", "prefill") == 1.0


def test_of_two_daemons_the_mean_is_compared_and_each_by_itself_too() -> None:
    found = {"bare": speeds(90, 45), "again": speeds(110, 55), "socket": speeds(100, 40), "second": speeds(90, 60)}
    assert ratio_to_bare(found, "socket", "decode") == 0.975  # (0.95 and 1)
    assert ratio_to_bare(found, "second", "decode") == 1.05


def test_the_second_bare_process_is_compared_with_the_first() -> None:
    found = {"bare": speeds(100, 100, 100), "again": speeds(90, 95, 99)}
    assert ratio_to_bare(found, "again", "decode") == 0.95


def test_one_bare_process_is_enough() -> None:
    assert ratio_to_bare({"bare": speeds(100, 50), "after": speeds(98, 49)}, "after", "decode") == 0.98

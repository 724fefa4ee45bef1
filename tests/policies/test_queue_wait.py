"""How long a call will wait behind others."""

from __future__ import annotations

from llmaas.policies.queue_wait import QueueWait


def test_nothing_is_known_before_a_call_has_queued() -> None:
    queue = QueueWait()
    for i in range(20):  # each is admitted as it comes
        queue.admitted(submitted=float(i), now=i + 0.1)
    assert queue.expected_s(3, since=20.0, now=20.0) is None


def test_it_is_so_many_turns_as_others_go_before_and_one_more() -> None:
    queue = QueueWait()
    for i in range(1, 6):  # all came at once, and one is admitted every 2 s
        queue.admitted(submitted=0.0, now=2.0 * i)
    assert queue.expected_s(0, since=0.0, now=10.0) == 2.0
    assert queue.expected_s(3, since=0.0, now=11.0) == 7.0


def test_what_comes_after_a_pause_is_not_taken_for_a_long_turn() -> None:
    queue = QueueWait()
    queue.admitted(submitted=0.0, now=2.0)
    queue.admitted(submitted=1000.0, now=1002.0)
    assert queue.expected_s(0, since=1002.0, now=1002.0) == 2.0


def test_one_turn_that_was_quick_or_slow_does_not_stay() -> None:
    queue = QueueWait()
    queue.admitted(submitted=0.0, now=100.0)
    for i in range(1, 21):
        queue.admitted(submitted=0.0, now=100.0 + i)
    found = queue.expected_s(0, since=0.0, now=120.0)
    assert found is not None and abs(found - 1.0) < 0.1


def test_a_turn_that_is_late_is_not_known() -> None:
    queue = QueueWait()
    queue.admitted(submitted=0.0, now=2.0)
    assert queue.expected_s(0, since=0.0, now=5.0) is None
    assert queue.expected_s(2, since=0.0, now=5.0) == 3.0

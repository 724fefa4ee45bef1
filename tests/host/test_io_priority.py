"""The level at which a thread reads from the disk."""

from __future__ import annotations

import threading

import pytest

from llmaas.host.io_priority import LOWEST, io_level, lower_io_priority
from llmaas.host.raw_calls import call_number


@pytest.mark.skipif(call_number({"x86_64": 252, "aarch64": 31}) is None, reason="the call has another number here")
def test_a_thread_and_those_that_it_starts_read_after_others() -> None:
    levels: list[int | None] = []

    def lower() -> None:
        lower_io_priority()
        levels.append(io_level())
        inner = threading.Thread(target=lambda: levels.append(io_level()))
        inner.start()
        inner.join()

    before = io_level()
    outer = threading.Thread(target=lower)
    outer.start()
    outer.join()
    assert levels == [LOWEST, LOWEST]
    assert io_level() == before != LOWEST, "other threads are as they were"


def test_where_the_call_is_not_known_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.host.io_priority.call_number", lambda numbers: None)
    lower_io_priority()
    assert io_level() is None

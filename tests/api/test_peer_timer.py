"""A peer's time runs only while the loop does."""

from __future__ import annotations

import asyncio
import time

import pytest

from llmaas.api import peer_timer
from llmaas.api.peer_timer import PeerTimer
from tests.support.loop import on_a_loop


@on_a_loop
async def test_a_peer_that_does_nothing_is_too_late() -> None:
    late = asyncio.Event()
    PeerTimer(0.01, late.set)
    await asyncio.wait_for(late.wait(), 5)


@on_a_loop
async def test_a_timer_that_is_cancelled_does_not_fire() -> None:
    late = asyncio.Event()
    PeerTimer(0.01, late.set).cancel()
    await asyncio.sleep(0.05)
    assert not late.is_set()


@on_a_loop
async def test_time_in_which_the_loop_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_timer, "STOOD_STILL_S", 0.2)
    late = asyncio.Event()
    timer = PeerTimer(0.1, late.set)
    time.sleep(0.5)
    await asyncio.sleep(0.05)
    assert not late.is_set(), "the peer has had no time yet"
    await asyncio.wait_for(late.wait(), 5)
    late.clear()
    timer = PeerTimer(0.1, late.set)
    time.sleep(0.5)
    await asyncio.sleep(0)
    timer.cancel()
    await asyncio.sleep(0.2)
    assert not late.is_set(), "one that has begun again can be cancelled, too"

"""The long run, shortly: some thousand frames and some hundred bodies."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.fuzz import frames
from tests.fuzz.long_run import Attacker, Flaw, run


def test_some_thousand_frames_and_bodies_get_one_reply_each() -> None:
    found = asyncio.run(run(2_000, 150, seed=random.randrange(10**6)))
    assert found["frames"] >= 2_000 and found["bodies"] == 150


def test_a_second_reply_a_foreign_one_and_a_fault_are_noticed() -> None:
    ended = {1: 0, 2: 0}
    count = Attacker.count
    count({"id": 1, "type": "done"}, ended)
    for reply in (
        {"id": 1, "type": "done"},
        {"id": 9, "type": "failed", "code": "busy"},
        {"id": 2, "type": "failed", "code": "internal"},
        {"id": 2, "type": "news"},
    ):
        with pytest.raises(Flaw):
            count(reply, ended)


def test_the_same_seed_makes_the_same_frames() -> None:
    one, other = (b"".join(frames.request(random.Random(3), i) for i in range(50)) for _ in range(2))
    assert one == other

"""What the planner learns of a machine, as others may read it."""

from __future__ import annotations

import pytest

from llmaas.planner.actions import LoadChunks, RunStep, StepItem
from llmaas.planner.cost_model import LearnedCosts, SwitchCosts
from llmaas.records import ContextId, RequestId, Tier
from tests.support.planner_world import World, world


def step(start: int, stop: int) -> RunStep:
    return RunStep(1, (StepItem(RequestId(1), ContextId("c"), 0, start, stop, False),))


def test_what_was_not_observed_is_not_said() -> None:
    costs = SwitchCosts()
    assert costs.learned == LearnedCosts(None, None, None, None)
    costs.observe_place(2_000_000, 0.010)
    costs.observe_step(step(0, 256), 1, 0.512)
    learned = costs.learned
    assert learned.decode is learned.read is None
    assert learned.place is not None and learned.compute is not None
    assert learned.place[0] + 2 * learned.place[1] == pytest.approx(0.010)
    assert 256 * learned.compute[0] + 32 * learned.compute[1] == pytest.approx(0.512)


_READ_S, _PLACE_S = 20e-9, 100e-9
"""For each byte of a world whose disk is faster than its codec."""


def _timed_loads(w: World) -> int:
    """Answer everything; loads take as long as their bytes say. How many were from the POOL and from DISK at once."""
    mixed = 0
    while w.due:
        if isinstance(action := w.due[0], LoadChunks):
            read, placed = (
                sum(held[c.key] for c in action.chunks if c.tier is tier)
                for tier, held in ((Tier.DISK, w.disk), (Tier.POOL, w.pool))
            )
            w.now += _READ_S * read + _PLACE_S * (read + placed)
            mixed += bool(read and placed)
        w.answer_one(0)
    return mixed


def test_what_reading_costs_is_learned_from_loads_that_were_partly_in_the_pool() -> None:
    w = world(pool_bytes=150_000, n_cells=512, ctx_limit=512, disk_bytes=1 << 30)
    w.tick, w.token_s = 0.0, 0.01
    contexts, mixed = [w.open() for _ in range(5)], 0
    tokens = (64, 256, 448, 384, 448)
    for n in [0, 1, 2] * 4 + [0, 3, 1, 4, 2] * 8:  # the POOL holds the first three
        w.call(contexts[n], 1 if contexts[n].n_kv else tokens[n], 0)
        mixed += _timed_loads(w)
    learned = w.planner.learned_costs.read
    assert mixed >= 10 and learned is not None
    assert learned[0] + 0.05 * learned[1] == pytest.approx(50_000 * (_READ_S + _PLACE_S), rel=0.2)

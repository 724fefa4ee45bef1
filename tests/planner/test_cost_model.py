"""What the planner learns of a machine, as others may read it."""

from __future__ import annotations

import pytest

from llmaas.planner.actions import RunStep, StepItem
from llmaas.planner.cost_model import LearnedCosts, SwitchCosts
from llmaas.records import ContextId, RequestId


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

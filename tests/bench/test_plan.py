"""bench.plan's own parts: prediction and measurement must be of the same calls, sizes and settings."""

from __future__ import annotations

from typing import Any

import pytest

from bench.plan import SYSTEM, compared, predicted, settings_for, work_for
from bench.replay import Plan, budget_of
from bench.replaying.work import Work
from llmaas.engine.fake import FakeEngine
from llmaas.replay.prices import Costs

PLAN = Plan(4, 12, 512, ("llmaas",), restarts=0)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(n_cells=256)


@pytest.fixture(scope="module")
def work(engine: FakeEngine) -> Work:
    return work_for(PLAN, "random", 1, engine)


def test_the_planner_in_virtual_time_has_the_daemons_cells_and_pool(engine: FakeEngine, work: Work) -> None:
    geometry = engine.info.geometry
    budget = budget_of(work, geometry.token_bytes, 0.25)
    settings, flags = settings_for(budget, geometry), SYSTEM.serve_flags(budget)
    assert settings.n_cells == int(flags[flags.index("--cells") + 1]) >= work.longest
    assert settings.pool_bytes == int(flags[flags.index("--pool-bytes") + 1])
    assert (settings.spending, settings.bits, settings.wear) == ("tolerance", 4.0, "sparing")


def test_the_same_calls_are_compared(engine: FakeEngine, work: Work) -> None:
    geometry = engine.info.geometry
    settings = settings_for(budget_of(work, geometry.token_bytes, 0.25), geometry)
    calls, written = predicted(work, settings, Costs())
    assert len(calls) == len(work.calls) and written >= 0
    assert [call.call.prompt for call in calls] == [len(call.tokens) for call in work.calls]
    tiers = ("cells", "pool", "disk", "recomputed")
    rows: list[dict[str, Any]] = [
        {
            "row": "call",
            "number": call.number,
            "switch_ms": 2e3 * told.switch_s,
            "ttft_ms": 1e3 * told.ttft_s,
            "sources": dict(zip(tiers, told.sources, strict=True)),
        }
        for call, told in zip(work.calls, calls, strict=True)
        if call.number != 7
    ]
    found = compared(work, rows, calls)
    counted = sum(call.switches and call.n_new > 0 and call.number != 7 for call in work.calls)
    assert found["switch_ms"]["n"] == [counted, counted]
    for real, told in (found["switch_ms"][p] for p in ("mean", "p50", "p99")):
        assert real == pytest.approx(2 * told, rel=1e-3)
    assert found["ttft_ms"]["p50"][0] == found["ttft_ms"]["p50"][1]
    assert all(real == told for real, told in found["from"].values())

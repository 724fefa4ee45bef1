"""How many bits chunks may take changes while the planner runs: several models share one budget of bits."""

from __future__ import annotations

import pytest

from llmaas.planner import events as ev
from llmaas.policies.bit_price import shared_bits
from llmaas.records import ChunkSensitivity
from tests.support.planner_world import World, run_call, world


def mean_bits(w: World) -> float:
    values = 64 * w.s.geometry.n_layer * (w.s.geometry.k_dim + w.s.geometry.v_dim)
    return 8 * sum(w.pool.values()) / len(w.pool) / values


def filled(bits: float, sensitivity: float = 1e-3) -> World:
    w = world(spending="tolerance", bits=bits, pool_bytes=10_000_000, wear="eager")
    w.sensitivity = lambda: ChunkSensitivity(sensitivity, sensitivity, 0.5, 10.0, 640)  # type: ignore[method-assign]
    for _ in range(4):
        run_call(w, w.open(), 640, 0)
    return w


def test_with_fewer_bits_stored_chunks_are_coded_again_and_new_ones_take_less() -> None:
    w = filled(5.0)
    assert mean_bits(w) == pytest.approx(5.0, abs=0.4)
    w.send(ev.BudgetChanged(bits=3.0))
    for _ in range(8):
        run_call(w, w.open(), 640, 0)
    assert w.planner.tally.chunks_lowered > 0 and mean_bits(w) < 3.5
    assert not w.planner.check()


def test_with_more_bits_new_chunks_are_better_and_stored_ones_stay_as_they_are() -> None:
    w = filled(3.0)
    before, lowered = dict(w.pool), w.planner.tally.chunks_lowered
    w.send(ev.BudgetChanged(bits=6.0))
    run_call(w, w.open(), 640, 0)
    assert all(w.pool[key] == nbytes for key, nbytes in before.items())
    new = [nbytes for key, nbytes in w.pool.items() if key not in before]
    assert sum(new) / len(new) > 1.4 * sum(before.values()) / len(before)
    assert w.planner.tally.chunks_lowered == lowered


def test_the_model_whose_chunks_suffer_more_gets_more_bits_and_all_take_no_more_than_before() -> None:
    worlds = {"suffers": filled(4.0, 1e-2), "does not": filled(4.0, 1e-4)}
    curves = {name: w.planner.bit_curve for name, w in worlds.items()}
    bits = shared_bits(4.0, {name: curve for name, curve in curves.items() if curve is not None})
    assert bits["suffers"] > 4.5 and bits["does not"] < 3.5
    assert sum(bits.values()) == pytest.approx(8.0, abs=0.05)


@pytest.mark.parametrize("spending", ["uniform", "llms"])
def test_where_bits_are_not_spent_by_what_they_do_there_is_no_curve(spending: str) -> None:
    w = world(spending=spending)
    run_call(w, w.open(), 640, 0)
    before = dict(w.pool)
    w.send(ev.BudgetChanged(bits=2.5))
    run_call(w, w.open(), 640, 0)
    assert w.planner.bit_curve is None and all(w.pool[key] == nbytes for key, nbytes in before.items())

"""What a device holds and how fast it switches, by arithmetic and by a replay."""

from __future__ import annotations

import pytest

from llmaas.errors import BadRequest
from llmaas.planner.cost_model import LearnedCosts
from llmaas.planner.settings import PlannerChoices, bit_settings
from llmaas.records import Precision
from llmaas.replay.planning import OWN_BYTES, PlannedModel, coded_token_bytes, divide_ram, expected, held, settings_of
from llmaas.replay.prices import DEVICES, MACHINES, MODELS, Costs, learned_prices, priced
from llmaas.traces import switching
from llmaas.traces.call import TraceCall

MIB = 1 << 20
SMOL = PlannedModel("SmolLM2-135M", MODELS["0.1B"].geometry, 93 * MIB, 8192)
"""23,040 bytes of KV a token; 5,760 at 4 bits."""


def test_ram_is_divided_without_rest_and_a_context_of_full_length_fits() -> None:
    plan = divide_ram(SMOL, PlannerChoices(), ram=1024 * MIB, others=512 * MIB, contexts=30, length=4096)
    assert plan.others + plan.weights + plan.own + plan.cells + plan.pool + plan.free == 1024 * MIB
    assert plan.n_cells == 4096 and plan.cells == 4096 * 23_040
    assert plan.free == 0 and plan.pool == 512 * MIB - 93 * MIB - OWN_BYTES - plan.cells


def test_ram_that_nobody_needs_is_left_free() -> None:
    plan = divide_ram(SMOL, PlannerChoices(), ram=64 << 30, others=0, contexts=4, length=2048)
    assert plan.n_cells == 4 * 2048
    assert plan.pool == pytest.approx(4 * 2048 * 5760 + 8 * MIB)
    assert plan.free > 60 << 30


def test_too_little_ram_is_refused_with_what_takes_it() -> None:
    with pytest.raises(BadRequest, match="93, the program 150, 4096 cells 90"):
        divide_ram(SMOL, PlannerChoices(), ram=256 * MIB, others=0, contexts=2, length=4096)


def test_contexts_that_fit_and_the_time_they_take_to_come_back() -> None:
    choices = PlannerChoices()
    plan = divide_ram(SMOL, choices, ram=1024 * MIB, others=512 * MIB, contexts=30, length=4096)
    costs = Costs(
        prefill_token=1e-3, load=1e-3, code_byte=1e-9, cell_byte=1e-10, disk_latency=2e-3, disk_read_byte=4e-9
    )
    rows = {row.length: row for row in held(SMOL, choices, plan, 10**9, costs)}
    assert list(rows) == [512, 1024, 2048, 4096]
    row = rows[1024]
    assert (row.in_cells, row.in_pool, row.on_disk) == (4, plan.pool // 5_898_240, 169)
    assert row.pool_ms == pytest.approx(1 + 5.898_24 + 2.359_296)
    assert row.disk_ms == pytest.approx(row.pool_ms + 2 + 4 * 5.898_24)
    assert row.anew_ms == pytest.approx(1024)


def test_a_token_outside_cells_takes_what_the_bits_say() -> None:
    geometry = MODELS["0.1B"].geometry
    assert coded_token_bytes(geometry, PlannerChoices()) == 5760
    exact = coded_token_bytes(geometry, PlannerChoices(**bit_settings(Precision(16, 16))))
    assert 23_040 < exact < 23_100
    assert coded_token_bytes(geometry, PlannerChoices(**bit_settings(Precision(8, 8)))) < 13_000


def test_more_memory_and_a_faster_disk_make_switches_shorter() -> None:
    choices = PlannerChoices()
    trace = list(switching.make("random", 12, limit=2048, seed=1, hours=6))
    p50 = []
    for ram, disk in ((420, "sd"), (420, "ufs4"), (2048, "ufs4")):
        plan = divide_ram(SMOL, choices, ram=ram * MIB, others=0, contexts=12, length=2048)
        settings = settings_of(SMOL, PlannerChoices(pool_bytes=plan.pool), plan, n_seqs=32, max_batch=512)
        found = expected(trace, settings, priced(DEVICES[disk], MACHINES["pc"], 0.135e9))
        p50.append(found["switch_ms_p50"])
    assert p50[0] > p50[1] > p50[2] == 0


def test_bytes_written_a_day_are_those_of_the_trace_by_its_days() -> None:
    plan = divide_ram(SMOL, PlannerChoices(), ram=420 * MIB, others=0, contexts=4, length=2048)
    choices = PlannerChoices(pool_bytes=plan.pool, wear="eager", **bit_settings(Precision(4, 4)))
    settings = settings_of(SMOL, choices, plan, n_seqs=8, max_batch=512)
    calls = [TraceCall(12 * 3600.0 * i, "a", f"c{i % 4}", 256, 0) for i in range(9)]  # four days
    found = expected(calls, settings, Costs())
    assert found["bytes_written"] == pytest.approx(9 * 256 * 5760, rel=0.2)
    assert found["bytes_written_a_day"] == pytest.approx(found["bytes_written"] / 4, rel=0.01)


def test_learned_costs_are_prices_and_what_was_not_learned_is_the_tables() -> None:
    table = priced(DEVICES["emmc"], MACHINES["board"], 1e9)
    learned = LearnedCosts(compute=(2e-3, 1e-3), decode=(4e-3, 5e-3), read=(3e-3, 5e-3), place=(1e-3, 2e-3))
    found = learned_prices(learned, table, times=2.0)
    assert (found.prefill_token, found.prefill_back, found.step, found.decode_token) == (4e-3, 2e-3, 8e-3, 1e-2)
    assert found.place(1e6, 4e6) == pytest.approx(3e-3)
    assert found.read(1e6) + found.place(1e6, 4e6) == pytest.approx(8e-3), "a load from DISK takes what was learned"
    other = learned_prices(learned, table, own_disk=False)
    assert other.disk_read_byte == table.disk_read_byte
    assert learned_prices(LearnedCosts(None, None, None, None), table) == table


def test_tokens_far_into_a_context_cost_more_where_that_was_learned() -> None:
    costs = Costs(prefill_token=1e-3, prefill_back=1e-3)
    assert costs.prefill(0, 1024) == pytest.approx(1.024 + 0.512)
    assert costs.prefill(1024, 2048) == pytest.approx(1.024 + 1.536)

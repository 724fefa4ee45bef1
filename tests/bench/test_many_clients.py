"""Figures of the benches of many clients, from raw numbers: a harness that miscounts would praise any scheduler."""

from __future__ import annotations

import pytest

from bench.batching import Run, figures_of, sliced_run, together_run
from bench.crossover import crossover, rows
from bench.lib.arrivals import crossing, gaps_and_pauses, rate, steady_rate, together, turns
from bench.quantum import choose, wait_for_turn
from bench.urgent import accounts_of, bars
from llmaas.calls import Done, FinishReason, SwitchReport
from llmaas.records import ContextId


def every(step: float, n: int, begin: float = 0.0) -> list[float]:
    return [begin + step * i for i in range(n)]


def test_only_the_time_in_which_all_answer_counts() -> None:
    early, late = every(0.25, 41), every(0.5, 41, begin=5.0)  # 0 .. 10 and 5 .. 25 seconds
    assert together([early, late]) == (5.0, 10.0)
    assert rate([early, late], 5.0, 10.0) == 4 + 2
    assert together_run([early, late]).rate == 6
    with pytest.raises(ValueError, match="never under way"):
        together([every(1, 3), every(1, 3, begin=9.0)])


def test_a_steady_rate_does_not_depend_on_where_its_time_begins() -> None:
    arrivals = every(0.2, 100)
    for begin in (1.0, 1.05, 1.1, 1.19):
        assert steady_rate(arrivals, begin, begin + 8) == pytest.approx(5.0)
    with pytest.raises(ValueError, match="1 tokens"):
        steady_rate(arrivals, 0.9, 1.1)


def test_turns_are_over_when_others_get_tokens_however_unevenly_the_machine_runs() -> None:
    mine = [*every(0.1, 9), 3.0, *every(0.1, 10, begin=8.0), *every(0.1, 5, begin=13.0)]
    others = [*every(0.1, 20, begin=5.0), *every(0.1, 20, begin=10.0)]
    assert turns([mine, others], others=10) == [[10, 10], [20]], "whose turn may go on is not counted"
    assert turns([mine, [*others, *every(0.1, 10, begin=15.0)]], others=10) == [[10, 10, 5], [20]]
    assert turns([[], others], others=10) == [[], []]
    within, pauses = gaps_and_pauses([mine, others], others=10)
    assert max(within) == pytest.approx(2.2), "a stutter"
    assert pauses == pytest.approx([5.0, 4.1, 3.1])


def test_slicing_counts_from_submission_and_until_the_first_is_done() -> None:
    def turns_of_forty(first: float) -> list[float]:
        return [t for k in range(3) for t in every(0.1, 40, begin=first + 8.0 * k)]

    run = sliced_run(0.0, [turns_of_forty(0.1), turns_of_forty(4.1)])  # ten tokens a second together
    assert run.rate == pytest.approx(10, rel=0.02)
    assert run.paused == 2
    assert run.pauses == pytest.approx([4.1, 4.1, 4.1])
    assert max(run.gaps) == pytest.approx(0.1)


def test_ways_are_held_against_the_bare_batches_of_their_round() -> None:
    def runs(*rates: float) -> list[Run]:
        return [Run(r, [0.1], []) for r in rates]

    found = figures_of(
        {
            "bare_unified": runs(100, 50, 100),
            "bare_streams": runs(80, 60, 90),
            "service": runs(90, 54, 90),
            "slicing": runs(50, 30, 50),
        }
    )
    assert found["service"]["over_bare"] == 0.9 and found["slicing"]["over_bare"] == 0.5
    assert found["service"]["over_streams"] == 1.0, "90/80, 54/60, 90/90"


def test_the_shortest_quantum_that_keeps_nine_tenths_everywhere_is_chosen() -> None:
    table = {10: (0.8, 0.7), 20: (0.92, 0.85), 30: (0.94, 0.9), 50: (0.97, 0.95)}
    rows = [{"quantum": q, "share": share} for q, shares in table.items() for share in shares]
    assert choose(rows) == 30
    assert choose([{**row, "share": 0.1} for row in rows]) == 50
    assert wait_for_turn(30, fitting=4, tps=90) == 4.0


def test_the_crossover_lies_between_the_lengths_around_it() -> None:
    lengths, compute = [128, 512, 2048], [10.0, 40.0, 160.0]
    assert crossing(lengths, compute, [40.0, 80.0, 80.0]) == pytest.approx(1024)
    assert crossing(lengths, compute, [1.0, 1.0, 1.0]) == 128, "reading is always quicker"
    assert crossing(lengths, compute, [900.0, 900.0, 900.0]) is None, "computing is"
    found = rows(
        dict(zip(lengths, (0.01, 0.04, 0.16), strict=True)),
        dict.fromkeys(lengths, 0.001),
        dict(zip(lengths, (0.04, 0.08, 0.08), strict=True)),
        dict(zip(lengths, (0.011, 0.04, 0.06), strict=True)),
    )
    assert [row["over_better"] for row in found] == [1.1, 1.0, 0.75]
    assert crossover(found) == 1024


def done(n_prompt: int, recomputed: int = 0) -> Done:
    switch = SwitchReport(recomputed=recomputed)
    return Done(ContextId("c"), FinishReason.LENGTH, n_prompt, n_prompt, 1, switch, 0, 0, 0)


def test_work_that_the_background_did_twice_falls_short() -> None:
    def shorts(background: Done, prefilled: int) -> list[str]:
        before, after = {"tokens_prefilled": 10, "tokens_recomputed": 5}, {"tokens_recomputed": 5}
        account = accounts_of([background], [done(32)], before, {**after, "tokens_prefilled": 10 + prefilled})
        row = {"prompt_tokens": 32, "urgent": {"over_idle_ms": 150.0, "ttft_ms": {"p90": 200.0}}}
        return [bar.what for bar in bars([row], {"urgent": [account]}, step_target=0.1) if not bar.holds]

    assert shorts(done(4096), 4128) == []
    assert shorts(done(4096, recomputed=64), 4128) == ["urgent: tokens computed again"]
    assert shorts(done(4096), 4192) == ["urgent: tokens prefilled, over what was asked"]

from __future__ import annotations

import pytest

from llmaas.errors import BadRequest
from llmaas.planner.actions import Outcome
from llmaas.records import Geometry, StateSize
from llmaas.replay.prices import Costs
from llmaas.replay.simulator import Replay
from llmaas.traces.call import TraceCall, read_trace
from tests.support.planner_world import settings


def calls(*rows: tuple[float, str, int, int]) -> list[TraceCall]:
    return [TraceCall(t, "app", context, prompt, generate) for t, context, prompt, generate in rows]


def test_a_switch_from_the_pool_costs_its_bytes_and_nothing_else() -> None:
    costs = Costs(code_byte=1e-6, cell_byte=0.0)
    report = Replay(settings(pool_bytes=10_000_000), costs).run(
        calls((0, "a", 640, 0), (100, "b", 1000, 0), (200, "a", 1, 0))
    )
    back = report.calls[2]
    assert back.sources == (0, 640, 0, 0)
    coded = report.tally.bytes_written  # all of a and b; a is the part that came back
    assert 0 < back.switch_s < coded * costs.code_byte
    assert back.switch_s == pytest.approx((10 * 9_024 + 508) * 1e-6)  # the sink, the first token, is kept exactly


def test_a_whole_state_costs_its_bytes() -> None:
    costs, state = Costs(code_byte=1e-6, cell_byte=0.0), StateSize(fixed=5000, token=20)
    own = settings(pool_bytes=10_000_000, swappable=False, state=state)
    back = Replay(own, costs).run(calls((0, "a", 641, 0), (100, "b", 1000, 0), (200, "a", 1, 0))).calls[2]
    assert back.sources == (0, 640, 0, 0)
    assert back.switch_s == pytest.approx((64 + state.of(640)) * 1e-6)


def test_a_call_that_finds_the_engine_busy_waits() -> None:
    report = Replay(settings(max_running=1, scheduling="fifo")).run(calls((0, "a", 500, 0), (0.001, "b", 10, 5)))
    assert report.calls[1].admitted >= report.calls[0].done


def test_an_urgent_call_does_not_wait_for_one_that_runs_and_a_late_one_expires() -> None:
    rows = [
        TraceCall(0.0, "app", "slow", 600, 300, priority=8),
        TraceCall(1.0, "app", "urgent", 10, 5, priority=0),
        TraceCall(1.0, "app", "late", 10, 5, priority=9, deadline_s=0.05),
        TraceCall(9.0, "app", "paced", 1, 21, rate=10.0),
    ]
    fair = Replay(settings(max_running=1)).run(rows).calls
    fifo = Replay(settings(max_running=1, scheduling="fifo")).run(rows).calls
    assert fair[1].done < fair[0].done and fair[0].paused == 1 and fair[0].outcome is Outcome.LENGTH
    assert fifo[1].done > fifo[0].done
    assert fair[2].outcome is Outcome.EXPIRED
    assert fair[3].done - fair[3].first_token == pytest.approx(2.0, rel=0.1)


def test_calls_of_one_context_run_in_order() -> None:
    report = Replay(settings()).run(calls((0, "a", 100, 10), (0.001, "a", 10, 10)))
    assert report.calls[1].admitted >= report.calls[0].done


def test_the_same_trace_gives_the_same_report() -> None:
    trace = calls(*[(i * 0.5, "abc"[i * i % 3], 30 + i, i % 7) for i in range(20)])
    first, second = Replay(settings()).run(trace), Replay(settings()).run(trace)
    assert [(r.done, r.sources) for r in first.calls] == [(r.done, r.sources) for r in second.calls]
    assert first.tally == second.tally


def test_a_trace_is_json_lines_and_a_bad_line_is_named() -> None:
    good = '{"t": 1, "app": "a", "context": "c", "prompt": 5, "generate": 0}'
    assert list(read_trace(["# a comment", "", good])) == [TraceCall(1, "a", "c", 5, 0)]
    for bad in ("{", "[]", '{"t": 1}', good.replace("5", "0"), good.replace("5", "-5")):
        with pytest.raises(BadRequest, match="line 2"):
            list(read_trace([good, bad]))


def test_a_context_that_outgrows_the_cells_is_refused() -> None:
    with pytest.raises(BadRequest, match="grows beyond"):
        Replay(settings()).run(calls((0, "a", 5000, 0)))


@pytest.mark.parametrize("bytes_per_s", [2e5, 1e6, 4e6, 8e6, 2e7, 1e9])
def test_whatever_the_disk_a_switch_is_never_much_slower_than_by_reading_or_computing_alone(bytes_per_s: float) -> None:
    """Two contexts of 2048 tokens take turns, in cells and a POOL for little more than one."""
    trace = calls(*[(i * 500.0, "ab"[i % 2], 20 if i > 1 else 2048, 4) for i in range(12)])

    def mean_switch(split: str) -> float:
        geometry = Geometry(n_layer=30, k_dim=192, v_dim=192, head_dim_k=64, head_dim_v=64)
        own = settings(
            n_cells=2400,
            ctx_limit=2400,
            max_batch=512,
            prefill_slice=256,
            geometry=geometry,
            pool_bytes=16 << 20,
            split=split,
        )
        report = Replay(own, Costs(disk_read_byte=1 / bytes_per_s)).run(trace)
        assert report.problems == ()
        return sum(r.switch_s for r in report.calls[4:]) / 8

    read, compute, both = map(mean_switch, ("load_first", "recompute_first", "balanced"))
    assert both < 1.1 * min(read, compute)
    if bytes_per_s == 8e6:  # about where reading and computing take equally long
        assert both < 0.85 * min(read, compute)

from __future__ import annotations

import pytest

from llmaas.errors import BadRequest
from llmaas.replay import Costs, Replay, TraceCall, read_trace
from tests.planner_world import settings


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


def test_a_call_that_finds_the_engine_busy_waits() -> None:
    report = Replay(settings(max_running=1)).run(calls((0, "a", 500, 0), (0.001, "b", 10, 5)))
    assert report.calls[1].admitted >= report.calls[0].done


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

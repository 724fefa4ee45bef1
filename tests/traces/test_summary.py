from __future__ import annotations

from llmaas.traces.call import TraceCall
from llmaas.traces.summary import summary


def test_what_a_trace_is_like() -> None:
    names = "aabcaab"
    calls = [TraceCall(10.0 * i, f"app-{name}", name, 100, 10) for i, name in enumerate(names)]
    found = summary(calls)
    assert found["calls"] == 7
    assert found["contexts"] == found["apps"] == 3
    assert found["hours"] == 60 / 3600
    assert found["gap_s_p50"] == 10.0
    assert found["context_tokens_p99"] > found["context_tokens_p50"] == 220
    assert found["switches"] == 4 / 6
    # Returns: a a, a after b and c, a a, b after c and a.
    assert [found[f"returns_at_{n}"] for n in range(3)] == [0.5, 0.0, 0.5]


def test_a_trace_of_one_call_and_of_none_has_a_summary() -> None:
    assert summary([])["calls"] == 0
    assert summary([TraceCall(0, "a", "c", 5, 0)])["prompt_p50"] == 5

"""How fast a node is, from the calls that its daemon reports."""

from __future__ import annotations

import pytest

from llmaas.nodes.cluster.speed import NodeSpeed
from llmaas.records import AppId, ContextId, RequestInfo, RequestSpan


def call(number: int, *spans: RequestSpan, state: str = "ended") -> RequestInfo:
    return RequestInfo(number, AppId("1/a"), ContextId("c"), "c", "generate", 5, state, 0.0, spans)


def answer(number: int, *, tokens: int = 100, prefill_ms: float = 500.0, state: str = "ended") -> RequestInfo:
    spans = (
        RequestSpan("queued", 0.0, 100.0),
        RequestSpan("disk", 100.0, 200.0, tokens=1000),
        RequestSpan("prefill", 200.0, 200.0 + prefill_ms, tokens=tokens),
        RequestSpan("decode", 200.0 + prefill_ms, 1100.0 + prefill_ms),
    )
    return call(number, *spans, state=state)


def test_a_prompts_rate_and_the_time_of_calls_are_learnt() -> None:
    speed = NodeSpeed()
    assert speed.prefill_rate == 0.0 and speed.queue_s(8) == 0.0
    speed.observe([answer(1)], token_bytes=10.0)
    assert speed.prefill_rate == pytest.approx(200.0)
    assert speed.queue_s(3) == pytest.approx(3 * 1.5) and speed.queue_s(0) == 0.0
    assert speed.read(1, 10_000) == pytest.approx(0.1, rel=0.05)
    for number in range(2, 30):
        speed.observe([answer(number, prefill_ms=1000.0)], token_bytes=10.0)
    assert speed.prefill_rate == pytest.approx(100.0, rel=0.01)


def test_a_call_is_counted_once_and_not_before_it_has_ended() -> None:
    speed = NodeSpeed()
    running = [answer(1, state="running"), answer(2), answer(3)]
    for _ in range(5):
        speed.observe(running, 10.0)
    assert (speed.last, round(speed.prefill_rate)) == (0, 200)
    speed.observe([answer(1, prefill_ms=100.0), *running[1:]], 10.0)
    assert speed.last == 3
    assert speed.prefill_rate == pytest.approx(0.7 * 200 + 0.3 * 1000)
    speed.observe([answer(1), answer(2), answer(3)], 10.0)
    assert speed.prefill_rate == pytest.approx(0.7 * 200 + 0.3 * 1000)


def test_what_says_nothing_changes_nothing() -> None:
    speed = NodeSpeed()
    before = speed.prefill_rate
    speed.observe([call(1), call(2, RequestSpan("prefill", 0.0, None, 500)), answer(3, tokens=3)], 10.0)
    assert speed.prefill_rate == before

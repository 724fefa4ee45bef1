"""A daemon's recording becomes a trace: when calls came and how long they were, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llmaas.calls import Terms
from llmaas.errors import BadRequest
from llmaas.planner.events import ContextChanged, ContextClosed, ContextOpened, Event, Submitted
from llmaas.records import AppId, ContextId, RequestId
from llmaas.service.recorder import read
from llmaas.traces.recorded import from_recording
from tests.support.loop import on_a_loop
from tests.support.service_house import house

APP, CONTEXT = AppId("1000/mail"), ContextId("6f1c")


def submitted(n_total: int, max_new: int, request: int = 1, **more: object) -> Submitted:
    return Submitted(RequestId(request), CONTEXT, n_total, max_new, **more)  # type: ignore[arg-type]


def changed(n_kv: int) -> ContextChanged:
    return ContextChanged(CONTEXT, 0, (), n_kv)


def test_calls_get_what_they_added_and_what_was_drawn() -> None:
    events: list[tuple[Event, float]] = [
        (ContextOpened(CONTEXT, APP), 5.0),
        (submitted(100, 50), 10.0),
        (changed(80), 10.1),  # it was paused in its prompt
        (changed(119), 11.0),  # 20 drawn: the last of them has no KV yet
        (submitted(130, 5, priority=2, deadline=21.0, rate=3.0), 20.0),
        (changed(134), 21.0),
        (submitted(135, 0), 30.0),  # a hint
    ]
    first, second = from_recording(events, b"key")
    assert (first.t, first.prompt, first.generate) == (0.0, 100, 20)
    assert (second.t, second.prompt, second.generate) == (10.0, 10, 5)
    assert (second.priority, second.deadline_s, second.rate) == (2, 1.0, 3.0)
    assert (first.app, first.context) == (second.app, second.context)
    assert "mail" not in first.line()
    assert "6f1c" not in first.line()


def test_a_context_that_loses_tokens_begins_anew() -> None:
    events: list[tuple[Event, float]] = [
        (ContextOpened(CONTEXT, APP, n_kv=500), 0.0),
        (submitted(600, 10), 1.0),
        (changed(609), 2.0),
        (changed(200), 3.0),  # truncated
        (submitted(250, 10), 4.0),
        (changed(259), 5.0),
        (ContextClosed(CONTEXT), 6.0),
    ]
    first, second = from_recording(events, b"key")
    assert (first.prompt, second.prompt) == (600, 250), "what was there before is prompt, too"
    assert first.context != second.context


def test_the_key_decides_the_hashes() -> None:
    events: list[tuple[Event, float]] = [(ContextOpened(CONTEXT, APP), 0.0), (submitted(9, 1), 1.0)]
    names = {from_recording(events, key)[0].context for key in (b"a", b"a", b"b", b"c" * 100)}
    assert len(names) == 3


def test_a_recording_without_calls_is_refused() -> None:
    with pytest.raises(BadRequest, match="no call"):
        from_recording([(ContextOpened(CONTEXT, APP), 0.0)], b"")


@on_a_loop
async def test_a_real_recording_gives_the_calls_that_were_made(tmp_path: Path) -> None:
    said = [("a", "hello", 8), ("b", "a longer text than that", 5), ("a", "again", 3)]
    done = []
    async with house(tmp_path, record=tmp_path / "log") as h:
        for name in "ab":
            await h.service.create(AppId("1000/test"), name=name, system=None)
        for name, text, n in said:
            done.append((await h.say(name, text, n, terms=Terms(priority=3)))[1])
    calls = from_recording(read(tmp_path / "log")[1], b"key")
    assert len({call.context for call in calls}) == 2
    for call, was in zip(calls, done, strict=True):
        assert call.generate == was.n_generated
        assert call.priority == 3
        assert dataclasses.replace(call, text=None) == call
    total = sum(call.prompt + call.generate for call in calls if call.context == calls[0].context)
    assert total == done[2].n_tokens

"""Text is read off the event loop: others go on, and what happens to the call meanwhile leaves the context whole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import CallSpec, Generation, Turn
from llmaas.engine.fake import FakeEngine
from llmaas.records import AppId, Message
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

OTHER = AppId("1000/other")
SLOW = Turn((Message("user", "slow " + "x" * 200), Message("assistant", "y" * 300)))


class SlowReader(FakeEngine):
    """Renders what begins with "slow" only when ``gate`` is set, or the service stops."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.begun, self.gate, self.stopped = threading.Event(), threading.Event(), threading.Event()

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        if any(message.content.startswith("slow") for message in messages):
            self.begun.set()
            while not self.gate.wait(0.005):
                if self.stopped.is_set():
                    raise errors.ShuttingDown("the daemon is stopping")
        return super().render(messages, answer=answer)

    def stop_text(self) -> None:
        self.stopped.set()


def engine_of(h: House) -> SlowReader:
    engine = h.thread.engine
    assert isinstance(engine, SlowReader)
    return engine


async def begin(h: House) -> tuple[Any, asyncio.Future[Any], SlowReader]:
    """A call on the context "x" whose text is being read."""
    engine = engine_of(h)
    await h.service.create(APP, name="x", system=None)
    await h.say("x", "before", 5)
    request, future = h.service.submit(APP, "x", CallSpec(SLOW, Generation(5)), lambda piece: None)
    assert await asyncio.to_thread(engine.begun.wait, 10)
    return request, future, engine


@on_a_loop
async def test_others_go_on_while_a_text_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.service.text_threads.SHORT_CHARACTERS", 400)
    async with house(tmp_path, engine_type=SlowReader) as h:
        _, future, engine = await begin(h)
        await h.service.create(OTHER, name="y", system="short")
        assert (await h.say("y", "hello", 5, app=OTHER))[0]
        assert h.service.info(APP, "x").n_tokens and not future.done()
        engine.gate.set()
        assert (await future).n_prompt > 500


@on_a_loop
async def test_a_cancelled_call_is_told_at_once_and_the_next_finds_the_context_whole(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=SlowReader) as h:
        request, future, engine = await begin(h)
        before = h.tokens("x")
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled):
            await asyncio.wait_for(future, 1)
        after = asyncio.create_task(h.say("x", "after", 5))
        await asyncio.sleep(0.05)
        assert not after.done() and h.tokens("x") == before, "the text is still being read"
        engine.gate.set()
        await after
        assert [m.content for m in h.service.show(APP, "x").messages if m.role == "user"] == ["before", "after"]


@on_a_loop
async def test_a_context_is_deleted_as_soon_as_its_text_has_been_read(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=SlowReader) as h:
        _, future, engine = await begin(h)
        deleting = asyncio.create_task(h.service.delete(APP, "x"))
        with pytest.raises(errors.Cancelled):
            await asyncio.wait_for(future, 1)
        assert not deleting.done()
        engine.gate.set()
        await deleting
        with pytest.raises(errors.UnknownContext):
            h.service.show(APP, "x")


@on_a_loop
async def test_a_service_that_stops_does_not_wait_for_a_text(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=SlowReader) as h:
        _, future, _ = await begin(h)
        creating = asyncio.create_task(h.service.create(OTHER, name="z", system="slow"))
        await asyncio.sleep(0.02)
        await asyncio.wait_for(h.service.stop(), 2)
        for ended in (future, creating):
            with pytest.raises(errors.ShuttingDown):
                await ended


@on_a_loop
async def test_what_no_context_could_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=SlowReader) as h:
        await h.service.create(APP, name="x", system=None)
        engine = engine_of(h)
        large = [
            Turn((Message("user", "slow" + "x" * 1024 * engine.token_bytes),)),
            Turn(tuple([Message("user", "slow")] * 1025)),
            Turn(prompt="x" * (1024 * engine.token_bytes + 1)),
        ]
        for turn in large:
            with pytest.raises(errors.ContextTooLong, match="1024"):
                await h.call("x", turn, Generation(5))
        with pytest.raises(errors.ContextTooLong, match="1024"):
            await h.service.create(APP, name="y", system=large[0].messages[0].content)
        assert not engine.begun.is_set() and h.tokens("x") == []

"""A context that is full and goes on without its oldest turns: what stays, and that what is said then is exact."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import CallSpec, FinishReason, Generation, Piece, Sampling, Turn
from llmaas.engine.base import BatchItem, Row
from llmaas.engine.fake import BOS, FakeEngine
from llmaas.records import Message
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

LIMIT = 1024


def next_token(tokens: list[int]) -> int | None:
    """What an engine that has never seen anything else says after ``tokens``."""
    engine = FakeEngine(2 * LIMIT, 1, max_batch=2 * LIMIT)
    engine.set_sampler(0, Sampling())
    return engine.step([BatchItem(0, 0, tokens, 0)])[0]


def rendered(h: House, name: str) -> list[int]:
    """The context's messages through the template, all at once."""
    engine = h.thread.engine
    messages = h.service.show(APP, name).messages
    return engine.tokenize(engine.render(messages, answer=False), special=True, bos=True)


async def fill(h: House, name: str, turns: int = 9) -> None:
    for i in range(turns):
        await h.say(name, f"{i}: " + "x" * 60, 12)


@pytest.mark.parametrize("system", ["You are brief.", None])
@on_a_loop
async def test_a_conversation_without_end_keeps_its_system_message_and_its_newest_turns(
    tmp_path: Path, system: str | None
) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=system)
        shifts = 0
        for i in range(40):
            answer, done = await h.say("x", f"{i}: " + "x" * 60, 12, on_full="shift")
            shifts += done.n_dropped > 0
            tokens = h.tokens("x")
            assert len(tokens) == done.n_tokens <= LIMIT and done.n_generated == 12
            assert tokens[0] == BOS and tokens.count(BOS) == 1
            assert tokens == rendered(h, "x")[: len(tokens)], "as if what was dropped had never been said"
            messages = h.service.show(APP, "x").messages
            assert messages[-1].content == answer and messages[-2].content.startswith(f"{i}:")
            if system:
                assert messages[0] == Message("system", system)
            assert [m.role for m in messages[-4:]] == ["user", "assistant"] * 2 or i == 0
            assert next_token(tokens[:-1]) == tokens[-1], "no KV has seen what was dropped"
        assert 4 <= shifts <= 12, "once in many turns"


@on_a_loop
async def test_an_answer_that_fills_the_context_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system="You are brief.")
        await fill(h, "x", 6)
        pieces: list[Piece] = []
        generation = Generation(700, Sampling(temperature=0.8, seed=3), logprobs=1, on_full="shift")
        _, future = h.service.submit(APP, "x", CallSpec(Turn((Message("user", "go on"),)), generation), pieces.append)
        done = await future
        assert done.reason is FinishReason.LENGTH and done.n_generated == 700 and done.n_dropped > 300
        messages = h.service.show(APP, "x").messages
        assert "".join(piece.text for piece in pieces) == messages[-1].content and messages[-2].content == "go on"
        assert [token for piece in pieces for token in piece.tokens] == h.tokens("x")[-700:]
        assert h.tokens("x") == rendered(h, "x")[: len(h.tokens("x"))]
        assert len(h.tokens("x")) == done.n_tokens <= LIMIT
        await h.say("x", "and?", 5, on_full="shift")
        assert next_token(h.tokens("x")[:-1]) == h.tokens("x")[-1]


@on_a_loop
async def test_a_stop_string_after_a_shift_is_cut_off_what_was_told(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system="You are brief.")
        await fill(h, "x", 6)
        await h.service.fork(APP, "x", name="y")
        sampling = Sampling(temperature=0.8, seed=3)
        whole, _ = await h.say("x", "go on", 700, sampling=sampling, on_full="shift")
        at = next(i for i in range(600, 690) if whole.index(whole[i : i + 6]) == i)
        stop = whole[at : at + 6]
        told, done = await h.say("y", "go on", 700, sampling=sampling, on_full="shift", stop=(stop,))
        assert done.stop == stop and done.n_dropped > 300 and told == whole[:at]
        assert h.service.show(APP, "y").messages[-1].content == told
        assert bytes(h.tokens("y")[-done.n_kept :]).decode() == told and len(h.tokens("y")) == done.n_tokens
        await h.say("y", "and?", 5, on_full="shift")
        assert next_token(h.tokens("y")[:-1]) == h.tokens("y")[-1], "no KV has seen the stop string"


@on_a_loop
async def test_an_answer_longer_than_everything_ends_where_nothing_is_left_to_drop(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system="You are brief.")
        await fill(h, "x", 4)
        answer, done = await h.say("x", "go on", 5000, on_full="shift")
        assert done.reason is FinishReason.CONTEXT_FULL and done.n_tokens == LIMIT
        messages = h.service.show(APP, "x").messages
        assert [m.role for m in messages] == ["system", "user", "assistant"] and messages[-1].content == answer
        with pytest.raises(errors.ContextTooLong):
            await h.say("x", "more", 5)
        _, done = await h.say("x", "more", 5, on_full="shift")
        assert done.n_dropped > 900 and done.n_generated == 5


@on_a_loop
async def test_raw_text_keeps_its_first_piece(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        first = "once upon a time "
        for i in range(12):
            turn = Turn(prompt=(first if i == 0 else "") + f"{i}, " * 40)
            await h.call("x", turn, Generation(20, on_full="shift"))
            assert bytes(h.tokens("x")[1 : 1 + len(first)]).decode() == first
            assert next_token(h.tokens("x")[:-1]) == h.tokens("x")[-1]
        with pytest.raises(errors.ContextTooLong):
            await h.call("x", Turn(prompt="y" * LIMIT), Generation(20, on_full="shift"))


@on_a_loop
async def test_an_answer_that_is_continued_keeps_its_own_turn(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await fill(h, "x", 8)
        said, _ = await h.say("x", "tell", 100, on_full="shift")
        more, done = await h.call("x", Turn(), Generation(300, on_full="shift"))
        messages = h.service.show(APP, "x").messages
        assert done.n_dropped > 0 and messages[-2:] == (Message("user", "tell"), Message("assistant", said + more))


def full_disk(h: House) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise errors.DiskFull("no room")

    h.store.rewrite = fail  # type: ignore[method-assign]


class FailingEngine(FakeEngine):
    """Its steps fail while ``fails`` is set."""

    fails = False

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        if self.fails:
            raise errors.EngineFailed("injected")
        return super().step(items, adapter, draw_s=draw_s)


def failing_steps(h: House) -> None:
    assert isinstance(h.thread.engine, FailingEngine)
    h.thread.engine.fails = True


@pytest.mark.parametrize(
    ("trouble", "text", "error"),
    [
        (lambda h: None, "y" * LIMIT, errors.ContextTooLong),
        (full_disk, "more", errors.DiskFull),
        (failing_steps, "more", errors.EngineFailed),
    ],
)
@on_a_loop
async def test_after_a_failure_the_whole_conversation_is_there_again(
    tmp_path: Path, trouble: Callable[[House], None], text: str, error: type[Exception]
) -> None:
    async with house(tmp_path, engine_type=FailingEngine) as h:
        await h.service.create(APP, name="x", system="You are brief.")
        await fill(h, "x", 8)
        before, messages = h.tokens("x"), h.service.show(APP, "x").messages
        trouble(h)
        with pytest.raises(error):
            await h.say("x", text, 300, on_full="shift")
        vars(h.thread.engine).pop("fails", None)
        vars(h.store).pop("rewrite", None)
        assert h.tokens("x") == before and h.service.show(APP, "x").messages == messages
        _, done = await h.say("x", "again", 3)
        assert done.n_dropped == 0 and h.tokens("x")[: len(before)] == before
        assert next_token(h.tokens("x")[:-1]) == h.tokens("x")[-1]


@on_a_loop
async def test_without_leave_nothing_is_dropped(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await fill(h, "x", 8)
        _, done = await h.say("x", "go on", 500)
        assert done.reason is FinishReason.CONTEXT_FULL and done.n_dropped == 0
        with pytest.raises(errors.ContextTooLong):
            await h.say("x", "more", 5)


@on_a_loop
async def test_a_cancelled_answer_keeps_what_was_said_after_a_shift(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"step_time": lambda n: 0.001}) as h:
        await h.service.create(APP, name="x", system=None)
        await fill(h, "x", 7)
        pieces: list[Piece] = []
        generation = Generation(800, on_full="shift")
        request, future = h.service.submit(APP, "x", CallSpec(Turn(prompt="go on"), generation), pieces.append)
        while sum(len(piece.tokens) for piece in pieces) < 500:
            await asyncio.sleep(0.01)
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled) as caught:
            await future
        said = [token for piece in pieces for token in piece.tokens]
        assert caught.value.n_generated == len(said) >= 500 and h.tokens("x")[-len(said) :] == said

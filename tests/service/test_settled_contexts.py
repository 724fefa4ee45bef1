"""Contexts whose template writes past answers anew: through the whole service, with failures, shifts and restarts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import Generation, Sampling, Turn
from llmaas.engine.base import BatchItem, Row
from llmaas.engine.fake import BOS, FakeEngine
from llmaas.engine.llama.chat import ChatTemplate
from llmaas.records import Message, ModelInfo
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house
from tests.support.template_talk import TEMPLATES

QWEN = ChatTemplate(TEMPLATES["qwen3.5-needs-a-user"])
GEMMA = ChatTemplate(TEMPLATES["gemma1-no-system"])


class Thinker(FakeEngine):
    """It opens each answer with a thought, which its template drops when the next turn comes."""

    fails = False

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        return QWEN.render(messages, answer=answer)

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        if self.fails:
            raise errors.EngineFailed("injected")
        return super().step(items, adapter, draw_s=draw_s)


class NoSystem(FakeEngine):
    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        return GEMMA.render(messages, answer=answer)


def next_token(tokens: list[int]) -> int | None:
    """What an engine that has never seen anything else says after ``tokens``."""
    engine = FakeEngine(4096, 1, max_batch=4096)
    engine.set_sampler(0, Sampling())
    return engine.step([BatchItem(0, 0, tokens, 0)])[0]


def whole(h: House, name: str, *, answer: bool) -> list[int]:
    """The conversation through the template, all at once."""
    engine = h.thread.engine
    messages = h.service.show(APP, name).messages
    return engine.tokenize(engine.render(messages, answer=answer), special=True, bos=True)


@on_a_loop
async def test_each_turn_drops_the_last_thought_and_goes_on_exactly(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=Thinker) as h:
        await h.service.create(APP, name="x", system="You are brief.")
        assert h.tokens("x") == [] and h.service.info(APP, "x").n_messages == 1
        for i in range(5):
            answer, done = await h.say("x", f"Question {i}?", 9)
            tokens = h.tokens("x")
            assert tokens[-9:] == [*answer.encode()] and done.n_tokens == len(tokens)
            before = whole(h, "x", answer=False)[: len(tokens) - 9 - len("<think>\n")]
            assert tokens[: len(before)] == before, "the past is as the template has it"
            assert next_token(tokens[:-1]) == tokens[-1], "no KV has seen a thought that was dropped"
            assert done.switch.recomputed < 60, "the last answer only"
    async with house(tmp_path, engine_type=Thinker) as h:
        assert h.tokens("x") == tokens
        await h.say("x", "Still there?", 9)
        assert next_token(h.tokens("x")[:-1]) == h.tokens("x")[-1]


@on_a_loop
async def test_with_kept_thoughts_nothing_is_rewritten(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=Thinker, keep_thoughts=True) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", "Question?", 9)
        tokens = h.tokens("x")
        _, done = await h.say("x", "And?", 9)
        assert h.tokens("x")[: len(tokens)] == tokens and done.switch.recomputed == 0


@pytest.mark.parametrize("trouble", ["engine", "disk", "too long", "refused"])
@on_a_loop
async def test_after_a_failure_the_past_is_as_it_was(tmp_path: Path, trouble: str) -> None:
    async with house(tmp_path, engine_type=Thinker) as h:
        await h.service.create(APP, name="x", system="You are brief.")
        await h.say("x", "Question?", 9)
        before, messages = h.tokens("x"), h.service.show(APP, "x").messages

        def fail(*_: Any, **__: Any) -> None:
            raise errors.DiskFull("no room")

        if trouble == "engine":
            vars(h.thread.engine)["fails"] = True
        if trouble == "disk":
            h.store.rewrite = fail  # type: ignore[method-assign]
        new = [Message("user", "y" * 2000 if trouble == "too long" else "And?")]
        if trouble == "refused":
            new = [Message("im", "a role that is part of a control token's name")]
        with pytest.raises(errors.LlmaasError):
            await h.call("x", Turn(tuple(new)), Generation(9))
        vars(h.thread.engine).pop("fails", None)
        vars(h.store).pop("rewrite", None)
        assert h.tokens("x") == before and h.service.show(APP, "x").messages == messages
        _, done = await h.say("x", "And?", 9)
        assert done.n_tokens == len(h.tokens("x")) and next_token(h.tokens("x")[:-1]) == h.tokens("x")[-1]


@pytest.mark.parametrize("kind", [Thinker, NoSystem])
@on_a_loop
async def test_a_full_context_keeps_a_system_message_that_is_in_the_users(
    tmp_path: Path, kind: type[FakeEngine]
) -> None:
    async with house(tmp_path, engine_type=kind) as h:
        await h.service.create(APP, name="x", system="You are brief.")
        dropped = 0
        for i in range(30):
            _, done = await h.say("x", f"{i}: " + "x" * 60, 12, on_full="shift")
            tokens = h.tokens("x")
            dropped += done.n_dropped
            assert b"You are brief." in bytes(token for token in tokens if token < 256)
            assert tokens[0] == BOS and tokens.count(BOS) == 1
            assert next_token(tokens[:-1]) == tokens[-1]
        assert dropped and h.service.show(APP, "x").messages[0] == Message("system", "You are brief.")


class WithoutTemplate(FakeEngine):
    @property
    def info(self) -> ModelInfo:
        return replace(super().info, chat_note="the model has no chat template: plain ChatML is used")


@on_a_loop
async def test_a_new_context_says_that_its_messages_do_not_go_through_the_models_own_template(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=WithoutTemplate) as h:
        info = await h.service.create(APP, name="x", system=None)
        assert "plain ChatML" in info.note and not h.service.info(APP, "x").note
        assert "plain ChatML" in str(h.service.hello()["note"])
    async with house(tmp_path) as h:
        assert not (await h.service.create(APP, name="y", system=None)).note


@on_a_loop
async def test_a_message_that_is_held_back_can_be_kept_and_cut_off(tmp_path: Path) -> None:
    async with house(tmp_path, engine_type=NoSystem) as h:
        await h.service.create(APP, name="x", system="You are brief.")
        await h.say("x", "Question?", 9)
        info = await h.service.truncate(APP, "x", n_tokens=None, n_messages=1)
        assert (info.n_messages, info.n_tokens) == (1, 0)
        await h.service.fork(APP, "x", name="y")
        await h.say("y", "Question?", 9)
        assert "You are brief." in bytes(t for t in h.tokens("y") if t < 256).decode()
        for n_tokens, n_messages in ((None, 0), (0, None)):
            await h.service.fork(APP, "x", name=f"z{n_messages}")
            info = await h.service.truncate(APP, f"z{n_messages}", n_tokens=n_tokens, n_messages=n_messages)
            assert (info.n_messages, info.n_tokens) == (0, 0)
    async with house(tmp_path, engine_type=NoSystem) as h:
        assert [m.role for m in (await h.shown("x")).messages] == ["system"]
        assert (await h.shown("z0")).messages == ()

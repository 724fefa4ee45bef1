"""Conversations taken over to a model with another tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import Generation, Turn
from llmaas.engine.fake import FakeEngine
from llmaas.engine.fake import text as fake_text
from llmaas.kvchunks.store.store import Span, Store
from llmaas.records import AppId, Message
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, MASTER, House, house

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. "


class OtherEngine(FakeEngine):
    """Another model: its token for a byte is another number, and it writes messages in another form."""

    def __init__(self, n_cells: int = 1024, n_seqs: int = 8, **options: Any) -> None:
        super().__init__(n_cells, n_seqs, name="other", fingerprint="other-weights", vocab="other-bytes", **options)

    def tokenize(self, text: str, *, special: bool, bos: bool, **more: Any) -> list[int]:
        return [_other(token) for token in super().tokenize(text, special=special, bos=bos, **more)]

    def piece(self, token: int) -> bytes:
        return fake_text.piece(_other(token))

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        text = "".join(f"[{m.role}] {m.content}<|eos|>" for m in messages)
        return text + "[assistant] " if answer else text


def _other(token: int) -> int:
    return 255 - token if token < 256 else token


def says(engine: type[FakeEngine], tokens: Sequence[int]) -> str:
    """What the tokens say to a model, without special ones."""
    return b"".join(engine().piece(token) for token in tokens).decode("utf-8", "replace")


async def talk(h: House) -> list[Message]:
    """A conversation with a system message, an answer that was continued, and an answer that is open."""
    await h.service.create(APP, name="x", system="Be brief.")
    await h.say("x", TEXT, 12)
    await h.call("x", Turn(), Generation(5))  # the same answer goes on
    await h.call("x", Turn((Message("user", "and"), Message("assistant", "so"))), None)
    await h.say("x", "then?", 7)
    return list((await h.shown("x")).messages)


@on_a_loop
async def test_a_conversation_goes_on_with_another_model(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        messages = await talk(h)
    async with house(tmp_path, engine_type=OtherEngine) as h:
        with pytest.raises(errors.ModelMismatch, match="fake") as caught:
            await h.say("x", "hi", 3)
        assert "ctx migrate" in caught.value.hint
        last_used = h.service.info(APP, "x").last_used
        info = await h.service.migrate(APP, "x")
        assert info.usable and info.n_messages == len(messages) == 7
        assert info.last_used == last_used
        assert list((await h.shown("x")).messages) == messages
        closed = "".join(f"[{m.role}] {m.content}" for m in messages[:-1])
        assert says(OtherEngine, h.tokens("x")) == f"{closed}[assistant] {messages[-1].content}"
        await h.call("x", Turn(), Generation(4))  # the open answer goes on
        assert len((await h.shown("x")).messages) == 7
        _, done = await h.say("x", "hi", 3)
        assert done.n_tokens == len(h.tokens("x"))
        assert (await h.service.migrate(APP, "x")).n_tokens == done.n_tokens, "it is this model's already"
    async with house(tmp_path, engine_type=OtherEngine) as h:
        assert h.service.info(APP, "x").usable
        await h.say("x", "more", 3)


@on_a_loop
async def test_the_new_tokens_are_those_of_the_same_conversation_held_with_the_new_model(tmp_path: Path) -> None:
    async with house(tmp_path / "old") as h:
        messages = await talk(h)
    async with house(tmp_path / "old", engine_type=OtherEngine) as h:
        await h.service.migrate(APP, "x")
        migrated = h.tokens("x")
        answer, _ = await h.say("x", "hi", 20)
    async with house(tmp_path / "new", engine_type=OtherEngine) as h:
        await h.service.create(APP, name="x", system=None)
        await h.call("x", Turn(tuple(messages)), None)
        own = h.tokens("x")
        assert migrated == own[:-1], "but for the end of the open answer"
        assert (await h.say("x", "hi", 20))[0] == answer


@on_a_loop
async def test_raw_text_is_tokenized_from_its_text(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="raw", system=None)
        first, _ = await h.call("raw", Turn(prompt="Once upon a <|im_start|>"), Generation(9))
        second, _ = await h.call("raw", Turn(prompt=TEXT), Generation(9))
    async with house(tmp_path, engine_type=OtherEngine) as h:
        await h.service.migrate(APP, "raw")
        tokens = h.tokens("raw")
        assert says(OtherEngine, tokens) == f"Once upon a {first}{TEXT}{second}"
        assert tokens[0] == fake_text.BOS and tokens.count(fake_text.IM_START) == 1
        await h.call("raw", Turn(prompt="and"), Generation(3))


@on_a_loop
async def test_names_in_raw_text_that_were_text_stay_text(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="raw", system=None)
        await h.call("raw", Turn(prompt="Mail: <|im_start|>", special=False), None)
        await h.call("raw", Turn((Message("user", "and <|im_start|>"),)), Generation(3))
        await h.call("raw", Turn(prompt="<|im_end|>"), None)
    async with house(tmp_path, engine_type=OtherEngine) as h:
        await h.service.migrate(APP, "raw")
        tokens = h.tokens("raw")
        assert says(OtherEngine, tokens).startswith("Mail: <|im_start|>[user] and <|im_start|>")
        assert fake_text.IM_START not in tokens and tokens.count(fake_text.IM_END) == 1


@on_a_loop
async def test_text_that_is_not_stored_is_refused_and_can_be_cut_off(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        for name in ("cut", "between"):
            await h.service.create(APP, name=name, system=None)
            await h.say(name, TEXT, 5)
            await h.service.truncate(APP, name, n_tokens=30, n_messages=None)
        await h.say("between", "go on", 5)
        await h.service.create(APP, name="old", system=None)
        await h.call("old", Turn(prompt=TEXT), Generation(5))
    with Store(tmp_path, master=MASTER) as store:
        for row in store.contexts():
            spans = [span if span.role else replace(span, text=None) for span in store.spans(row.id)]  # as version 0.1
            store.rewrite(row.id, spans, expect=row.n_tokens, now=row.last_used)
    async with house(tmp_path, engine_type=OtherEngine) as h:
        for name in ("cut", "between", "old"):
            before = h.tokens(name)
            with pytest.raises(errors.ModelMismatch, match="not stored as text"):
                await h.service.migrate(APP, name)
            assert h.tokens(name) == before and not h.service.info(APP, name).usable
        await h.service.truncate(APP, "cut", n_tokens=None, n_messages=0)
        assert (await h.service.migrate(APP, "cut")).usable
        await h.say("cut", "hi", 3)


@on_a_loop
async def test_what_the_new_model_cannot_hold_or_store_leaves_the_context_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        messages = await talk(h)
        before = h.tokens("x")
    async with house(tmp_path, engine_type=OtherEngine, engine={"n_cells": 128}) as h:
        with pytest.raises(errors.ContextTooLong):
            await h.service.migrate(APP, "x")

    def full(*_: object, **__: object) -> None:
        raise errors.DiskFull("no room")

    async with house(tmp_path, engine_type=OtherEngine) as h:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "rewrite", full)
            with pytest.raises(errors.DiskFull):
                await h.service.migrate(APP, "x")
        assert not h.service.info(APP, "x").usable and h.tokens("x") == before
        assert (await h.service.migrate(APP, "x")).usable
        assert list((await h.shown("x")).messages) == messages
    async with house(tmp_path) as h:
        assert not h.service.info(APP, "x").usable, "it is the other model's now"
        assert list((await h.service.migrate(APP, "x"), await h.shown("x"))[1].messages) == messages


def test_model_tokens_and_conversation_change_in_one_transaction(tmp_path: Path) -> None:
    """A process that is killed leaves either model's conversation whole: both are one statement of one transaction."""
    from llmaas.kvchunks.store.store import ModelName
    from tests.support.store_data import row as context_row

    with Store(tmp_path) as store:
        row = context_row("c")
        store.create_context(row, [Span((1, 2, 3), "user", "hi")])
        with pytest.raises(errors.StoreFailed):
            store.rewrite(row.id, [Span((7,))], expect=99, now=1.0, model=ModelName("m", "v"))
        assert (store.contexts()[0].vocab, list(store.tokens(row.id))) == (row.vocab, [1, 2, 3])
        store.rewrite(row.id, [Span((7,), "user", "hi")], expect=3, now=1.0, model=ModelName("m", "v"))
        found = store.contexts()[0]
        assert (found.model, found.vocab, list(store.tokens(row.id))) == ("m", "v", [7])


@on_a_loop
async def test_an_app_takes_over_its_own_contexts_only(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system="hi")
        theirs = await h.service.create(AppId("1000/other"), name="x", system="hi")
    async with house(tmp_path, engine_type=OtherEngine) as h:
        with pytest.raises(errors.UnknownContext):
            await h.service.migrate(APP, theirs.id)
        assert (await h.service.migrate(None, theirs.id)).usable, "the operator may"
        assert not h.service.info(APP, "x").usable

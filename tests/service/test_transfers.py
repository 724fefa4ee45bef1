"""Contexts that go from one model to another: tokens that stay, text that is tokenized anew, and what is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import Generation, Turn
from llmaas.engine.fake import FakeEngine
from llmaas.records import ContextSpan, Message
from tests.service.test_migration import OtherEngine, says, talk
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house


class LargerEngine(FakeEngine):
    """Other weights, and the same vocabulary."""

    def __init__(self, n_cells: int = 1024, n_seqs: int = 8, **options: Any) -> None:
        super().__init__(n_cells, n_seqs, name="larger", fingerprint="larger-weights", **options)


@on_a_loop
async def test_a_model_of_the_same_vocabulary_keeps_the_tokens_and_computes_them(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        messages = await talk(h)
        tokens = h.tokens("x")
        exported = await h.service.transfers.export_context(APP, "x")
        assert list((await h.shown("x")).messages) == messages, "it stays"
    async with house(tmp_path / "b", engine_type=LargerEngine) as h:
        info = await h.service.transfers.import_context(APP, exported)
        assert (info.name, info.usable, info.n_messages) == ("x", True, len(messages))
        assert h.tokens("x") == tokens and list((await h.shown("x")).messages) == messages
        assert info.tiers == (0, 0, 0, len(tokens)), "nothing is computed before it is used"
        await h.call("x", Turn(), Generation(4))  # the open answer goes on
        assert h.service.info(APP, "x").tiers[0] >= len(tokens)
        assert len((await h.shown("x")).messages) == len(messages)
    async with house(tmp_path / "b", engine_type=LargerEngine) as h:
        assert h.tokens("x")[: len(tokens)] == tokens, "it is stored"
        assert h.service.info(APP, "x").usable


@on_a_loop
async def test_a_model_of_another_vocabulary_tokenizes_the_text_anew(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        messages = await talk(h)
        exported = await h.service.transfers.export_context(APP, "x")
    async with house(tmp_path / "b", engine_type=OtherEngine) as h:
        info = await h.service.transfers.import_context(APP, exported, name="y")
        assert info.name == "y" and list((await h.shown("y")).messages) == messages
        closed = "".join(f"[{m.role}] {m.content}" for m in messages[:-1])
        assert says(OtherEngine, h.tokens("y")) == f"{closed}[assistant] {messages[-1].content}"


@on_a_loop
async def test_what_cannot_be_taken_in_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        await h.service.create(APP, name="x", system="Be brief.")
        transfers = h.service.transfers
        exported = await transfers.export_context(APP, "x")
        with pytest.raises(errors.ContextExists):
            await transfers.import_context(APP, exported)
        unknown = replace(exported, spans=(ContextSpan((1 << 20).to_bytes(4, "little")),))
        with pytest.raises(errors.BadRequest, match="token 1048576 is not in the vocabulary"):
            await transfers.import_context(APP, unknown, name="y")
        raw = replace(exported, vocab="of another", spans=(ContextSpan(bytes(8)),))
        with pytest.raises(errors.ModelMismatch, match="not stored as text"):
            await transfers.import_context(APP, raw, name="y")
        long = replace(exported, spans=(ContextSpan(bytes(4 * 5000)),))
        with pytest.raises(errors.ContextTooLong):
            await transfers.import_context(APP, long, name="y")
        with pytest.raises(errors.UnknownAdapter):
            await transfers.import_context(APP, exported, name="y", adapter="red")
        with pytest.raises(errors.UnknownContext):
            await transfers.export_context(APP, "y")
        assert [info.name for info in h.service.contexts(APP)] == ["x"]


@on_a_loop
async def test_quotas_hold_for_what_is_taken_in(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        await h.service.create(APP, name="x", system="Be brief.")
        exported = await h.service.transfers.export_context(APP, "x")
    async with house(tmp_path / "b", app_contexts=1) as h:
        await h.service.transfers.import_context(APP, exported)
        with pytest.raises(errors.QuotaExceeded):
            await h.service.transfers.import_context(APP, exported, name="y")
    async with house(tmp_path / "c", app_text_bytes=10) as h:
        with pytest.raises(errors.QuotaExceeded):
            await h.service.transfers.import_context(APP, exported)


@on_a_loop
async def test_two_that_come_at_once_make_one(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        exported = replace(await h.service.transfers.export_context(APP, "x"), name="y")
        both = (h.service.transfers.import_context(APP, exported) for _ in range(2))
        ends = await asyncio.gather(*both, return_exceptions=True)
        assert sum(isinstance(end, errors.ContextExists) for end in ends) == 1
        assert list((await h.shown("y")).messages) == [Message("system", "Be brief.")]

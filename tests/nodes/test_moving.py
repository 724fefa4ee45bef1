"""A context moves between two daemons: whole, with its chunks, and one of them owns it at each instant."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.transfer_records import MovedTurn
from llmaas.errors import (
    BadRequest,
    ContextExists,
    KeyReused,
    LlmaasError,
    Moving,
    NodeUnreachable,
    UnknownContext,
    UnknownNode,
)
from llmaas.kvchunks.store.move_rows import MoveState
from llmaas.nodes.node_messages import node_request
from llmaas.nodes.pinned import PinnedNodes
from llmaas.records import AppId, ContextId
from llmaas.service.keyed_turns import arrived_turns
from tests.service.test_migration import OtherEngine
from tests.support.loop import on_a_loop
from tests.support.node_house import SOON, House, node_daemon, pair, phone_and_desk

WORDS = "the tide comes in and the tide goes out " * 4


async def talk(house: House, context: str = "x", n_turns: int = 3) -> list[Any]:
    """What was said then."""
    async with house.daemon.connect("mail") as client:
        await client.create(name=context, system="Be brief.", ttl=3600.0)
        for i in range(n_turns):
            await client.ask(context, f"{i}: {WORDS}", max_tokens=9)
        await house.daemon.until_idle()
        return list((await client.show(context)).messages)


async def names(house: House) -> list[str]:
    async with house.daemon.connect("mail") as client:
        return sorted(info.name for info in await client.contexts())


async def said(house: House, context: str = "x") -> list[Any]:
    async with house.daemon.connect("mail") as client:
        return list((await client.show(context)).messages)


async def move(house: House, context: str = "x", node: str = "desk", **more: Any) -> Any:
    async with house.daemon.connect("mail") as client:
        return await asyncio.wait_for(client.move(context, node, **more), SOON)


async def go_on(house: House, context: str = "x") -> tuple[str, Any]:
    async with house.daemon.connect("mail") as client:
        stream = client.generate(context, "and?", max_tokens=9)
        text = "".join([piece.text async for piece in stream])
        return text, await stream.done()


async def until_one_owner(*houses: House) -> list[House]:
    """Who has the context x, once everybody knows; it must be soon."""
    for _ in range(400):
        rows = [row for house in houses for row in house.daemon.store.moves.all()]
        if not any(row.state is MoveState.LEAVING for row in rows):
            return [house for house in houses if "x" in await names(house)]
        await asyncio.sleep(0.05)
    raise AssertionError(rows)


@on_a_loop
async def test_it_is_there_with_its_chunks_and_no_more_here_and_goes_on_as_it_would_have(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        before = await talk(phone)
        await talk(phone, "unmoved")
        moved = await move(phone, name="renamed")
        assert (moved.node, moved.name) == ("desk", "renamed") and moved.n_chunks > 3 and moved.n_bytes > 100
        assert await names(phone) == ["unmoved"] and await names(desk) == ["renamed"]
        assert await said(desk, "renamed") == before
        text, done = await go_on(desk, "renamed")
        assert done.switch.recomputed == 0
        assert text == (await go_on(phone, "unmoved"))[0]
        assert [row.state for row in desk.daemon.store.moves.all()] == [MoveState.SETTLED]
        assert phone.daemon.store.moves.all() == []
        async with desk.daemon.connect("mail") as client:
            (info,) = await client.contexts()
            assert info.ttl == 3600.0


@on_a_loop
async def test_one_of_many_frames_moves_there_and_back(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path, n_cells=4096) as (phone, desk):
        before = await talk(phone, n_turns=9)
        there = await move(phone)
        back = await move(desk, node="phone")
        assert there.n_tokens == back.n_tokens > 1500
        assert back.n_chunks >= there.n_chunks - 1 > 20, "the last one is in RAM only"
        assert await said(phone) == before and await names(desk) == []
        assert phone.cut.seen.count("chunks") > 1


@on_a_loop
async def test_without_chunks_its_tokens_are_computed_there(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        before = await talk(phone)
        moved = await move(phone, way="tokens")
        assert (moved.n_chunks, moved.n_bytes) == (0, 0) and "chunks" not in desk.cut.seen
        assert await said(desk) == before
        _, done = await go_on(desk)
        assert (done.switch.cells, done.switch.pool, done.switch.disk) == (0, 0, 0)


@on_a_loop
async def test_what_cannot_move_stays_and_it_is_said_why(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        before = await talk(phone)
        await talk(desk, n_turns=1)
        with pytest.raises(ContextExists, match="node desk"):
            await move(phone)
        with pytest.raises(UnknownNode, match="tablet"):
            await move(phone, node="tablet")
        with pytest.raises(UnknownContext):
            await move(phone, "y")
        with pytest.raises(BadRequest):
            await move(phone, node="no name")
        PinnedNodes(desk.data_dir).remove("phone")
        with pytest.raises(LlmaasError, match="does not know"):
            await move(phone, name="other")
        assert await said(phone) == before
        assert phone.daemon.store.moves.all() == [] and await names(desk) == ["x"]


@on_a_loop
async def test_another_model_at_the_other_node_refuses_it(tmp_path: Path) -> None:
    other = {"engine": OtherEngine, "adapters": ()}
    async with node_daemon(tmp_path / "a") as phone, node_daemon(tmp_path / "b", **other) as desk:
        pair(phone, desk)
        await talk(phone)
        with pytest.raises(LlmaasError, match="another tokenizer") as raised:
            await move(phone)
        assert "ctx export" in raised.value.hint
        await go_on(phone)
        assert await names(desk) == []


@on_a_loop
async def test_calls_that_run_end_before_and_who_calls_later_is_told(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk), phone.daemon.connect("mail") as client:
        await talk(phone)
        stream = client.generate("x", "tell me more", max_tokens=60)
        moving = asyncio.create_task(move(phone))
        text = "".join([piece.text async for piece in stream])
        assert (await moving).name == "x"
        assert (await said(desk))[-1].content == text
        with pytest.raises(UnknownContext):
            await client.ask("x", "again", max_tokens=3)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("op", ["offer", "spans", "take", "chunks", "settled"])
@on_a_loop
async def test_a_link_that_is_cut_leaves_one_owner_with_all_that_was_said(tmp_path: Path, op: str, after: bool) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        before = await talk(phone)
        desk.cut.arm(op, after=after)
        try:
            await move(phone)
        except (NodeUnreachable, Moving) as error:
            failed: LlmaasError | None = error
        else:
            failed = None
        assert (failed is None) == (op in ("chunks", "settled")), failed
        (owner,) = await until_one_owner(phone, desk)
        assert owner is (desk if op in ("chunks", "settled") or (op, after) == ("take", True) else phone)
        assert await said(owner) == before
        await go_on(owner)
        for _ in range(400):
            if all(row.state is MoveState.SETTLED for row in desk.daemon.store.moves.all()):
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("the phone has not said that it knows")


@on_a_loop
async def test_nobody_uses_it_while_nobody_knows_who_has_it(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "phone") as phone:
        async with node_daemon(tmp_path / "desk") as desk:
            pair(phone, desk)
            before = await talk(phone)
            desk.cut.arm("take", after=True)
            port = int(desk.listener.address.rpartition(":")[2])
            asked = desk.cut.session

            def deaf(inner: Any, node: Any) -> Any:
                if "take" in desk.cut.seen:
                    raise ConnectionResetError
                return asked(inner, node)

            desk.cut.session = deaf  # type: ignore[method-assign]
            with pytest.raises(Moving, match="does not say"):
                await move(phone)
        async with phone.daemon.connect("mail") as client:
            uses = [
                client.ask("x", "so?"),
                client.show("x"),
                client.delete("x"),
                client.fork("x"),
                client.export_context("x"),
            ]
            for use in uses:
                with pytest.raises(Moving) as raised:
                    await use
                assert raised.value.retryable
            assert [info.name for info in await client.contexts()] == ["x"], "it is still listed"
        async with node_daemon(tmp_path / "desk", port) as desk:
            assert await until_one_owner(phone, desk) == [desk]
            assert await said(desk) == before


@on_a_loop
async def test_after_a_restart_the_source_asks_and_what_was_not_taken_stays(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "desk") as desk:
        async with node_daemon(tmp_path / "phone") as phone:
            pair(phone, desk)
            before = await talk(phone)
            app = AppId(f"{phone.daemon.service.contexts(None)[0].app}")
            async with phone.daemon.service.transfers.departures.departure(app, "x") as leaving:
                await leaving.begin("ab" * 16, PinnedNodes(phone.data_dir).find("desk").fingerprint)
        async with node_daemon(tmp_path / "phone") as phone:
            assert await until_one_owner(phone, desk) == [phone]
            assert await said(phone) == before


@on_a_loop
async def test_a_node_that_is_forgotten_is_not_waited_for(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        app = AppId(f"{phone.daemon.service.contexts(None)[0].app}")
        async with phone.daemon.service.transfers.departures.departure(app, "x") as leaving:
            await leaving.begin("ab" * 16, PinnedNodes(phone.data_dir).find("desk").fingerprint)
        PinnedNodes(phone.data_dir).remove("desk")
        await phone.mover.start()
        assert await until_one_owner(phone, desk) == [phone]
        await go_on(phone)


@on_a_loop
async def test_one_that_was_deleted_there_does_not_come_back_here(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        desk.cut.arm("chunks", after=False, n=1)
        desk.cut.arm("settled", after=False, n=1)
        await move(phone)
        async with desk.daemon.connect("mail") as client:
            await client.delete("x")
        assert await until_one_owner(phone, desk) == []
        for _ in range(400):
            if not desk.daemon.store.moves.all():
                break
            await asyncio.sleep(0.05)
        assert desk.daemon.store.moves.all() == []


async def asked(house: House, key: str, text: str = "and then?", n: int = 9) -> tuple[str, Any]:
    async with house.daemon.connect("mail") as client:
        stream = client.generate("x", text, max_tokens=n, idempotency_key=key)
        told = "".join([piece.text async for piece in stream])
        return told, await asyncio.wait_for(stream.done(), SOON)


@on_a_loop
async def test_what_was_done_with_a_key_is_told_again_where_the_context_is_now(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone, n_turns=1)
        first, done = await asked(phone, "first")
        second, _ = await asked(phone, "second", "and?")
        before = await said(phone)
        await move(phone)
        again, told = await asked(desk, "first")
        async with desk.daemon.connect("mail") as client:
            (info,) = await client.contexts()
            with pytest.raises(KeyReused):
                await client.ask("x", "something else", max_tokens=9, idempotency_key="first")
        assert again == first and told.context == info.id
        assert (told.n_generated, told.reason, told.switch) == (done.n_generated, done.reason, done.switch)
        assert (await asked(desk, "second", "and?"))[0] == second
        assert await said(desk) == before, "nothing was added twice"
        await move(desk, node="phone")
        assert (await asked(phone, "first"))[0] == first and await said(phone) == before


@on_a_loop
async def test_an_answer_that_was_interrupted_goes_on_by_its_key_where_the_context_is_now(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone, n_turns=1)
        await talk(phone, "unmoved", n_turns=1)
        async with phone.daemon.connect("mail") as client:
            whole = await client.ask("unmoved", "and then?", max_tokens=60)
            stream = client.generate("x", "and then?", max_tokens=60, idempotency_key="cut")
            async for _ in stream:
                break
            await stream.aclose()
        await phone.daemon.until_idle()
        before = await said(phone)
        await move(phone)
        text, done = await asked(desk, "cut", n=60)
        assert text == whole and done.n_generated == 60
        assert len(await said(desk)) == len(before), "the turn is there once"


@on_a_loop
async def test_keys_go_with_a_context_that_moves_while_it_is_answered(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone, n_turns=1)
        first, _ = await asked(phone, "first")
        async with phone.daemon.connect("mail") as client:
            stream = client.generate("x", WORDS, max_tokens=400)
            async for _ in stream:
                break
            moved = asyncio.ensure_future(move(phone))
            async for _ in stream:
                pass
            await moved
        before = await said(desk)
        assert "grow" in desk.cut.seen, "it went ahead"
        assert (await asked(desk, "first"))[0] == first and await said(desk) == before


def test_turns_that_no_context_can_have_are_as_if_never_asked_for() -> None:
    turns = [MovedTurn(f"k{n}", bytes(16), n_tokens=n) for n in (5, 6, 7)]
    assert [turn.key for turn in arrived_turns(turns, ContextId("c"), 6)] == ["k5", "k6"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""},
        {"key": "k" * 129},
        {"key": "a\n"},
        {"request": bytes(15)},
        {"n_tokens": -1},
        {"n_spans": -1},
        {"n_spans": 1 << 31},
        {"tokens": b"abc"},
        {"done": {"reason": "nonsense"}},
        {"text": b""},
        {"more": 1},
    ],
)
def test_a_turn_that_no_node_sends_is_refused(wrong: dict[str, Any]) -> None:
    turn = {"key": "k", "request": bytes(16), "n_tokens": 3, **wrong}
    with pytest.raises(BadRequest):
        node_request({"op": "take", "move": "ab" * 16, "turns": [turn]})


def test_more_turns_than_any_node_sends_are_refused() -> None:
    turns = [{"key": f"k{i}", "request": bytes(16), "n_tokens": 3} for i in range(65)]
    assert node_request({"op": "take", "move": "ab" * 16, "turns": turns[:64]})
    with pytest.raises(BadRequest, match="at most 64"):
        node_request({"op": "take", "move": "ab" * 16, "turns": turns})

"""A paired node that means harm: it adds contexts of its own, and changes nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.record_maps import to_map
from llmaas.api.transfer_messages import MAX_SPANS
from llmaas.errors import CallerError, ContextExists, ContextTooLong, LlmaasError, UnknownContext
from llmaas.nodes.identity import own_identity
from llmaas.nodes.link import NodeClient, connect_node
from llmaas.nodes.node_messages import Offer, node_frame
from llmaas.nodes.pinned import PinnedNode
from llmaas.records import ContextSpan
from tests.nodes.test_moving import go_on, move, names, said, talk
from tests.support.loop import on_a_loop
from tests.support.node_house import SOON, House, node_daemon, pair, phone_and_desk, pin

MOVE = "ab" * 16
SPANS = (ContextSpan(b"\1\0\0\0\2\0\0\0", "user", "hello"),)


@asynccontextmanager
async def harmful(root: Path, desk: House, name: str = "evil") -> AsyncIterator[NodeClient]:
    """Who is paired with the desk, and says what a test wants."""
    evil = own_identity(root / name)
    pin(desk.data_dir, name, evil)
    node = PinnedNode("desk", desk.own.certificate, desk.listener.address)
    client = await asyncio.wait_for(connect_node(evil, node), SOON)
    try:
        yield client
    finally:
        await client.close()


async def ask(client: NodeClient, request: Any, **other: Any) -> Any:
    frame = {**node_frame(request), **other} if not isinstance(request, dict) else request
    return await asyncio.wait_for(client.ask(frame.pop("op"), **frame), SOON)


def offer(desk: House, **other: Any) -> Offer:
    vocab = desk.daemon.service.transfers.arrivals.vocab
    one = Offer(MOVE, "mail", "gift", "m", vocab, len(SPANS), bytes(16), bytes(16))
    return replace(one, **other)


def spans(*more: ContextSpan, move: str = MOVE) -> dict[str, Any]:
    return {"op": "spans", "move": move, "spans": [to_map(span) for span in more or SPANS]}


@on_a_loop
async def test_its_chunks_are_found_by_no_context_but_its_own_also_after_a_restart(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "phone") as phone:
        async with node_daemon(tmp_path / "desk") as desk:
            pair(phone, desk)
            await talk(phone)
            await talk(desk, "own")
            moved = await move(phone)
            assert moved.n_chunks > 3, "not one of the desk's own chunks, of the same tokens, is taken for it"
            async with desk.daemon.connect("mail") as client:
                roots = {name: (await client.export_chunks(name)).root for name in ("own", "x")}
                assert roots["own"] != roots["x"]
                forked = await client.fork("x", name="copy")
                assert (await client.export_chunks(forked.id)).root == roots["own"], "nor do forks believe it"
            await desk.daemon.until_idle()
        async with node_daemon(tmp_path / "desk") as desk:
            async with desk.daemon.connect("mail") as client:
                assert {name: (await client.export_chunks(name)).root for name in ("own", "x")} == roots
            _, done = await go_on(desk, "x")
            assert done.switch.recomputed < 64, "its full chunks are found again"


@on_a_loop
async def test_what_it_adds_is_bounded_and_checked(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "desk") as desk, harmful(tmp_path, desk) as evil:
        most = desk.daemon.service.transfers.arrivals.most_tokens
        for wrong in (
            {**node_frame(offer(desk)), "app": "1/mail"},
            {**node_frame(offer(desk)), "app": "../x"},
            {**node_frame(offer(desk)), "name": "~x"},
            {**node_frame(offer(desk)), "name": "0123456789abcdef"},
            {**node_frame(offer(desk)), "name": "x" * 300},
            {**node_frame(offer(desk)), "move": "x"},
            {**node_frame(offer(desk)), "root": b""},
            {**node_frame(offer(desk)), "n_spans": MAX_SPANS + 1},
            {**node_frame(offer(desk)), "adapter": "no-such"},
            {**node_frame(offer(desk)), "more": 1},
            {"op": "list"},
            {"op": "take", "move": MOVE},
            spans(),
        ):
            with pytest.raises(LlmaasError):
                await ask(evil, dict(wrong))
        await ask(evil, offer(desk))
        with pytest.raises(CallerError, match="0 of 1 spans"):
            await ask(evil, {"op": "take", "move": MOVE})
        with pytest.raises(ContextTooLong):
            await ask(evil, spans(ContextSpan(bytes(4 * most + 4))))
        with pytest.raises(CallerError, match="not offered"):
            await ask(evil, {"op": "take", "move": MOVE})
        await ask(evil, offer(desk))
        with pytest.raises(CallerError, match="more than the 1 spans"):
            await ask(evil, spans(*SPANS, *SPANS))
        for bad in (
            ContextSpan(b"\1"),
            ContextSpan(b"\xff\xff\xff\x7f"),
            ContextSpan(b"", "user", None),
            ContextSpan(b"", ""),
        ):
            await ask(evil, offer(desk))
            await ask(evil, spans(bad))
            with pytest.raises(LlmaasError):
                await ask(evil, {"op": "take", "move": MOVE})
        assert await names(desk) == []


@on_a_loop
async def test_chunks_that_are_no_numbers_or_of_other_tokens_are_refused(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "desk") as desk, harmful(tmp_path, desk) as evil:
        await ask(evil, offer(desk))
        await ask(evil, spans())
        await ask(evil, {"op": "take", "move": MOVE})
        piece = {"index": 0, "n_bytes": 300, "data": bytes(300), "offset": 0, "proof": b""}
        about = await ask(evil, {"op": "chunks", "move": MOVE, "root": bytes(16), "kv": bytes(16), "pieces": [piece]})
        assert (about["taken"], about["refused"], about["usable"]) == (0, 1, False)
        assert await names(desk) == ["gift"]


@on_a_loop
async def test_moves_of_another_node_are_not_its_business(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        before = await talk(phone)
        await move(phone)
        (row,) = desk.daemon.store.moves.all()
        async with harmful(tmp_path, desk) as evil:
            assert (await ask(evil, {"op": "asked", "move": row.move})) == {"taken": False}
            await ask(evil, {"op": "settled", "move": row.move})
            with pytest.raises(UnknownContext):
                await ask(evil, {"op": "chunks", "move": row.move, "root": bytes(16), "kv": bytes(16), "pieces": []})
            with pytest.raises(CallerError, match="not a new one"):
                await ask(evil, offer(desk, move=row.move))
        assert desk.daemon.store.moves.all() == [row]
        assert await said(desk) == before


@on_a_loop
async def test_a_move_that_was_said_not_to_be_here_will_never_be(tmp_path: Path) -> None:
    """Of whoever's connection: the source has asked by another one, since it thought that this one was lost."""
    async with node_daemon(tmp_path / "desk") as desk, harmful(tmp_path, desk) as evil:
        await ask(evil, offer(desk))
        await ask(evil, spans())
        node = PinnedNode("desk", desk.own.certificate, desk.listener.address)
        other = await connect_node(own_identity(tmp_path / "evil"), node)
        assert (await ask(other, {"op": "asked", "move": MOVE})) == {"taken": False}
        with pytest.raises(CallerError, match="given up"):
            await ask(evil, {"op": "take", "move": MOVE})
        await other.close()
        assert await names(desk) == []


@on_a_loop
async def test_answers_go_on_in_its_own_contexts_only(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        await move(phone)
        (row,) = desk.daemon.store.moves.all()
        before = await said(desk)
        answer = {"context": "x", "max_tokens": 5, "priority": 0}
        async with harmful(tmp_path, desk) as evil:
            with pytest.raises(UnknownContext):
                await ask(evil, {"op": "go_on", "move": row.move, "answer": answer})
            with pytest.raises(UnknownContext):
                await ask(evil, {"op": "go_on", "move": MOVE, "answer": answer})
            for more in ({"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}, {"idempotency_key": "k"}):
                with pytest.raises(CallerError, match="nothing is to be added"):
                    await ask(evil, {"op": "go_on", "move": row.move, "answer": {**answer, **more}})
            assert await said(desk) == before
            await ask(evil, offer(desk))
            await ask(evil, spans())
            await ask(evil, {"op": "take", "move": MOVE})
            await evil.post("go_on", move=MOVE, answer=answer)
            frames = [await evil.reply()]
            while "tokens" in frames[-1]:
                frames.append(await evil.reply())
            assert frames[-1]["done"]["n_generated"] == 5
            async with desk.daemon.connect("mail", admin=True) as operator:
                assert [info.priority for info in await operator.requests(everyone=True)][-1] == 5


@on_a_loop
async def test_what_is_sent_ahead_goes_with_its_connection(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "desk") as desk:

        def waiting() -> list[str]:
            return [info.name for info in desk.daemon.service.contexts(None)]

        async with harmful(tmp_path, desk) as evil:
            with pytest.raises(CallerError, match="not offered"):
                await ask(evil, {"op": "stage", "move": MOVE})
            await ask(evil, offer(desk))
            with pytest.raises(CallerError, match="0 of 1 spans"):
                await ask(evil, {"op": "stage", "move": MOVE})
            for move in ("ab" * 16, "cd" * 16, "ef" * 16):
                await ask(evil, offer(desk, move=move))
                await ask(evil, spans(move=move))
                await ask(evil, {"op": "stage", "move": move})
                assert waiting() == [f"move-{move}"], "the one before is gone"
            assert await names(desk) == []
            assert (await ask(evil, {"op": "asked", "move": "ef" * 16})) == {"taken": False}
            with pytest.raises(CallerError):
                await ask(evil, {"op": "take", "move": "ef" * 16})
        for _ in range(400):
            if not waiting():
                break
            await asyncio.sleep(0.02)
        assert waiting() == []


@on_a_loop
async def test_what_waits_grows_by_what_is_checked_and_is_taken_whole(tmp_path: Path) -> None:
    async with node_daemon(tmp_path / "desk") as desk, harmful(tmp_path, desk) as evil:
        most = desk.daemon.service.transfers.arrivals.most_tokens
        tokens, n = SPANS[0].tokens, len(SPANS[0].tokens) // 4
        grow, take = {"op": "grow", "move": MOVE, "tokens": tokens}, {"op": "take", "move": MOVE}
        last = to_map(ContextSpan(tokens, "assistant", "so", True))
        await ask(evil, offer(desk))
        await ask(evil, spans())
        for too_early in (grow, {**take, "spans": [last]}):
            with pytest.raises(CallerError, match="nothing waits"):
                await ask(evil, dict(too_early))
        await ask(evil, {"op": "stage", "move": MOVE})
        for wrong in ({**grow, "tokens": b"abc"}, {**grow, "tokens": b"\xff\xff\xff\x7f"}, {**take, "n_known": 1}):
            with pytest.raises(LlmaasError):
                await ask(evil, wrong)
        assert (await ask(evil, dict(grow)))["n_cells"] == 2 * n, "what was refused has not come"
        with pytest.raises(CallerError, match="tokens have come"):
            await ask(evil, {**take, "spans": [last], "n_known": n + 3})
        for wrong in ({**last, "role": "x" * 300}, {**last, "tokens": b"\xff\xff\xff\x7f"}):
            with pytest.raises(LlmaasError):
                await ask(evil, {**take, "spans": [wrong]})
        async with desk.daemon.connect("mail") as client:
            await client.create(name="gift")
            with pytest.raises(ContextExists):
                await ask(evil, {**take, "spans": [last], "n_known": n})
            await client.delete("gift")
        taken = await ask(evil, {**take, "spans": [last], "n_known": n})
        assert taken["n_tokens"] == 3 * n
        assert [(m.role, m.content) for m in await said(desk, "gift")] == [("user", "hello"), ("assistant", "so")]
        assert await names(desk) == ["gift"]
        with pytest.raises(CallerError, match="not offered"):
            await ask(evil, dict(grow))
        await ask(evil, offer(desk, move="cd" * 16, name="more"))
        await ask(evil, spans(move="cd" * 16))
        await ask(evil, {"op": "stage", "move": "cd" * 16})
        with pytest.raises(ContextTooLong):
            await ask(evil, {**grow, "move": "cd" * 16, "tokens": bytes(4 * most)})

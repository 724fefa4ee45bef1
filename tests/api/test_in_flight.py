"""Requests of a connection: each gets one terminal reply, whatever becomes of it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import time
from pathlib import Path

import pytest

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.server import Limits
from llmaas.api.wire import Frame
from llmaas.records import ContextInfo, RequestId
from tests.support.loop import on_a_loop
from tests.support.scripted import collect, peer, serving, terminals, until, with_context

SMALL = Limits(max_frame=16384, write_buffer=65536)


@on_a_loop
async def test_every_operation_is_answered(path: Path) -> None:
    async with serving(path) as (backend, _):
        client = await with_context(path)
        uid = os.getuid()
        info = replies.result(ContextInfo, (await client.ask(1, "show", context="inbox"))["result"]["info"])
        assert (info.app, info.name) == (f"{uid}/mail", "inbox")
        assert [c["name"] for c in (await client.ask(2, "list"))["result"]] == ["inbox"]
        assert (await client.ask(3, "fork", context=info.id, name="copy"))["result"]["name"] == "copy"
        assert (await client.ask(4, "truncate", context="inbox", n_messages=0))["result"]["id"] == info.id
        assert (await client.ask(5, "stats"))["result"] == backend.stats_reply
        assert (await client.ask(6, "append", context="inbox", prompt="count 0"))["result"]["n_tokens"] == 9
        assert backend.generations == [None]
        assert (await client.ask(7, "delete", context="copy"))["result"] is None
        assert len((await client.ask(8, "list"))["result"]) == 1
        assert (await client.ask(9, "ping"))["result"] is None
        assert (await client.ask(10, "hint", context="inbox"))["result"] is None
        assert backend.hints == [info.id]
        await client.close()


@on_a_loop
async def test_generation_settings_reach_the_backend(path: Path) -> None:
    async with serving(path) as (backend, _):
        client = await with_context(path)
        wanted = msg.Generate("inbox", (), "count 0", 5, 0.5, 3, 0.5, 0.1, 7, ("END",))
        client.send(msg.request_frame(1, wanted))
        await collect(client, 1)
        assert backend.generations == [wanted.generation]
        await client.close()


@on_a_loop
async def test_answers_of_one_connection_interleave_and_each_ends_once(path: Path) -> None:
    async with serving(path):
        client = await with_context(path)
        client.send(*({"id": i, "op": "generate", "context": "inbox", "prompt": "count 50"} for i in (1, 2, 3)))
        frames = await collect(client, 3)
        for i in (1, 2, 3):
            texts = [f["text"] for f in frames if f["id"] == i and f["type"] == "piece"]
            assert texts == [f"{n} " for n in range(50)]
        assert terminals(frames) == {1: 1, 2: 1, 3: 1}
        order = [f["id"] for f in frames if f["type"] == "piece"]
        assert sum(a != b for a, b in itertools.pairwise(order)) > 50
        await client.close()


@on_a_loop
async def test_pieces_told_within_submit_come_before_the_end(path: Path) -> None:
    async with serving(path):
        client = await with_context(path)
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "at once"})
        assert [f["type"] for f in await collect(client, 1)] == ["piece", "done"]
        await client.close()


@pytest.mark.parametrize(
    ("op", "fields", "code", "says"),
    [
        ("fly", {}, "bad_request", "fly"),
        ("create", {"colour": "red"}, "bad_request", "'colour'"),
        ("generate", {"context": 5}, "bad_request", "'context'"),
        ("generate", {"context": "inbox", "temperature": 99.0}, "bad_request", "temperature"),
        ("generate", {"context": "inbox", "prompt": "too long"}, "context_too_long", "9000 tokens"),
        ("generate", {"context": "nowhere"}, "unknown_context", "nowhere"),
        ("create", {"name": "inbox"}, "context_exists", "inbox"),
        ("delete", {"context": "nowhere"}, "unknown_context", "nowhere"),
        ("hint", {"context": "nowhere"}, "unknown_context", "nowhere"),
        ("cancel", {"request": 77}, "unknown_request", "77"),
        ("generate", {"context": "inbox", "prompt": "boom"}, "internal", "RuntimeError"),
        ("generate", {"context": "inbox", "prompt": "boom now"}, "internal", "RuntimeError"),
        ("create", {"name": "boom"}, "internal", "RuntimeError"),
    ],
)
def test_a_failed_request_is_told_and_the_connection_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture, op: str, fields: Frame, code: str, says: str
) -> None:
    async def main() -> None:
        async with serving(path):
            client = await with_context(path)
            client.send({"id": 1, "op": op, **fields})
            (told,) = await collect(client, 1)
            assert (told["id"], told["type"], told["code"]) == (1, "failed", code)
            assert says in told["message"]
            assert told["hint"]
            await client.close()

    asyncio.run(main())
    faults = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(faults) == (code == "internal")
    assert all(r.exc_info and r.exc_info[0] is RuntimeError for r in faults)


@on_a_loop
async def test_an_id_in_use_is_refused_without_ending_the_request_that_has_it(path: Path) -> None:
    async with serving(path) as (backend, _):
        client = await with_context(path)
        client.send({"id": 1, "op": "create", "name": "slow"}, {"id": 1, "op": "ping"}, {"op": "ping"})
        for says in ("request 1 is still running", "'id'"):
            told = await client.frame()
            assert told is not None
            assert (told["id"], told["code"]) == (None, "bad_request")
            assert says in told["message"]
        backend.gate.set()
        (done,) = await collect(client, 1)
        assert (done["id"], done["type"]) == (1, "done")
        assert (await client.ask(1, "ping"))["type"] == "done"  # free again
        await client.close()


@on_a_loop
async def test_too_many_requests_at_once_are_busy_and_cancel_still_works(path: Path) -> None:
    async with serving(path, limits=Limits(max_in_flight=2)):
        client = await with_context(path)
        client.send(*({"id": i, "op": "generate", "context": "inbox", "prompt": "wait"} for i in (1, 2, 3)))
        client.send({"id": 4, "op": "create"}, {"id": 5, "op": "cancel", "request": 1})
        frames = await collect(client, 4)
        ends = {f["id"]: f.get("code", "done") for f in frames if f["type"] != "piece"}
        assert ends == {3: "busy", 4: "busy", 5: "done", 1: "cancelled"}
        assert all(f["retryable"] for f in frames if f.get("code") == "busy")
        client.send({"id": 6, "op": "generate", "context": "inbox", "prompt": "count 1"})
        assert terminals(await collect(client, 1)) == {6: 1}
        await client.close()


@on_a_loop
async def test_a_cancelled_request_ends_once_and_says_what_stayed(path: Path) -> None:
    async with serving(path) as (backend, _):
        client = await with_context(path)
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "wait"})
        client.send({"id": 2, "op": "cancel", "request": 1}, {"id": 3, "op": "cancel", "request": 1})
        frames = await collect(client, 3)
        assert terminals(frames) == {1: 1, 2: 1, 3: 1}
        end = next(f for f in frames if f["id"] == 1 and f["type"] != "piece")
        assert (end["code"], end["n_generated"]) == ("cancelled", 1)
        assert next(f for f in frames if f["id"] == 3)["code"] == "unknown_request"
        assert not backend.running
        await client.close()


@on_a_loop
async def test_a_cancel_that_races_the_end_leaves_one_terminal_reply(path: Path) -> None:
    async with serving(path):
        client = await with_context(path)
        for i in range(10, 90, 2):  # the cancel meets the count at every stage of its life
            client.send({"id": i, "op": "generate", "context": "inbox", "prompt": "count 5"})
            for _ in range((i - 10) // 4):
                await asyncio.sleep(0)
            client.send({"id": i + 1, "op": "cancel", "request": i})
            assert terminals(await collect(client, 2)) == {i: 1, i + 1: 1}
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "stubborn"})
        client.send({"id": 2, "op": "cancel", "request": 1})
        ends = {f["id"]: f["type"] for f in await collect(client, 2)}
        assert ends == {1: "done", 2: "done"}
        await client.close()


@on_a_loop
async def test_only_append_and_generate_can_be_cancelled_and_only_ones_own(path: Path) -> None:
    async with serving(path) as (backend, _):
        one, other = await with_context(path), await peer(path)
        one.send({"id": 1, "op": "create", "name": "slow"})
        told = await one.ask(2, "cancel", request=1)
        assert (told["code"], "create" in told["message"]) == ("bad_request", True)
        one.send({"id": 3, "op": "generate", "context": "inbox", "prompt": "wait"})
        assert (await one.frame() or {})["type"] == "piece"
        assert (await other.ask(1, "cancel", request=3))["code"] == "unknown_request"
        assert len(backend.running) == 1
        backend.gate.set()
        await one.close()
        await other.close()


@on_a_loop
async def test_a_reply_beyond_the_frame_limit_fails_its_request_only(path: Path) -> None:
    async with serving(path, limits=SMALL) as (backend, _):
        client = await peer(path)
        backend.stats_reply = {"long": "x" * 20000}
        assert (await client.ask(1, "stats"))["code"] == "frame_too_large"
        backend.stats_reply = {"strange": object()}
        assert (await client.ask(2, "stats"))["code"] == "internal"
        assert (await client.ask(3, "ping"))["type"] == "done"
        await client.close()


@on_a_loop
async def test_calls_of_a_connection_that_goes_are_cancelled_between_frames_of_others(path: Path) -> None:
    async with serving(path) as (backend, _):
        leaver, other = await with_context(path), await peer(path, app="other")
        leaver.send(*({"id": i, "op": "generate", "context": "inbox", "prompt": "wait"} for i in range(1, 61)))
        await until(lambda: len(backend.running) == 60)
        cancel = backend.cancel

        def slow(call: RequestId) -> None:
            time.sleep(0.01)
            cancel(call)

        backend.cancel = slow  # type: ignore[method-assign]
        leaver.writer.close()
        await until(lambda: len(backend.cancelled) > 0)
        assert (await other.ask(1, "ping"))["type"] == "done"
        assert len(backend.cancelled) < 60
        await until(lambda: len(backend.cancelled) == 60)
        await other.close()


@on_a_loop
async def test_requests_that_fail_leave_nothing_to_the_garbage_collector(path: Path) -> None:
    async with serving(path) as (backend, _):
        client = await with_context(path)
        gc.collect()
        gc.disable()
        try:
            for request in range(1, 101):
                client.send({"id": request, "op": "generate", "context": "inbox", "prompt": "wait"})
                client.send({"id": 1000 + request, "op": "cancel", "request": request})
                await collect(client, 2)
            backend.running.clear()
            assert gc.collect() < 200
        finally:
            gc.enable()
        await client.close()


@on_a_loop
async def test_hints_end_with_the_connection_that_sent_them(path: Path) -> None:
    async with serving(path) as (backend, _):
        client, other = await with_context(path), await peer(path)
        for request in (1, 2, 3):
            assert (await client.ask(request, "hint", context="inbox"))["type"] == "done"
        assert (await other.ask(1, "hint", context="inbox"))["type"] == "done"
        ended, _ = backend.running[RequestId(1)]
        ended.cancel()
        await client.close()
        await until(lambda: len(backend.running) == 1)
        assert sorted(backend.cancelled) == [2, 3]
        await other.close()
        await until(lambda: not backend.running)
        assert backend.cancelled[-1] == 4


@pytest.mark.parametrize(("limits", "second"), [({"app_tasks": 2}, "mail"), ({"tasks": 2}, "notes")])
@on_a_loop
async def test_operations_under_way_are_limited_for_an_app_and_for_all(
    path: Path, limits: dict[str, int], second: str
) -> None:
    async with serving(path, limits=Limits(**limits)) as (backend, _):
        clients = [await peer(path), await peer(path, app=second), await peer(path, app="other")]
        for client in clients[:2]:
            client.send({"id": 1, "op": "create", "name": "slow"})
            await client.ask(2, "ping")
        assert (await clients[1].ask(3, "create", name="b"))["code"] == "busy"
        reply = await clients[2].ask(3, "create", name="b")
        assert reply.get("code") == (None if "app_tasks" in limits else "busy")
        backend.gate.set()
        for client in clients[:2]:
            assert (await client.frame() or {})["id"] == 1
        for client in clients:
            await client.close()

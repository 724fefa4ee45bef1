"""Several models behind one socket: who gets which, who leaves for whom, and what stays when a process goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.api.limits import Limits
from llmaas.api.model_list import list_models
from llmaas.api.wire import encode
from llmaas.calls import Loading
from llmaas.errors import BadToken, EngineFailed, LlmaasError, ModelUnreadable, UnknownModel
from llmaas.front.process import ProcessState
from llmaas.weights_tier import WeightsTier
from tests.support.daemon import HELLO, ask
from tests.support.front_house import NBYTES, SOON, front_house, timeout
from tests.support.loop import on_a_loop

MARKED_S = 0.6
"""Seconds until it is known that a connection is at rest."""
LONG = "It was the best of times, it was the worst of times. " * 5


@on_a_loop
async def test_each_connection_is_served_by_the_model_that_it_names(tmp_path: Path) -> None:
    async with front_house(tmp_path) as house:
        assert house.there == set(), "nothing is loaded that nobody asks for"
        default, second = await house.connect(), await house.connect("b")
        assert (default.server["model"], second.server["model"]) == ("a", "b")
        assert second.server["served_as"] == "b" and (await house.connect("b-file")).server["model"] == "b"
        one, two = await default.context("c"), await second.context("c")
        assert await ask(default, one.id) and await ask(second, two.id, "other")
        assert len(await default.contexts()) == 1, "contexts belong to one model"
        with pytest.raises(UnknownModel, match="there are: a, b"):
            await house.connect("c")


@on_a_loop
async def test_the_blocking_client_names_a_model_too(tmp_path: Path) -> None:
    async with front_house(tmp_path) as house:

        def use() -> str:
            with Client(house.socket, app="test", model="b") as client:
                return str(client.server["model"])

        assert await asyncio.to_thread(use) == "b"
        await house.until_there("b")


@on_a_loop
async def test_models_are_listed_without_being_loaded(tmp_path: Path) -> None:
    async with front_house(tmp_path, pinned="b") as house:
        await house.until_there("b")
        async with timeout(SOON):
            while (found := await list_models(house.socket))[1].tier is not WeightsTier.PAGES:  # its process says so
                await asyncio.sleep(0.01)
        assert found[0].tier is WeightsTier.DISK
        assert [(m.name, m.state, m.default, m.pinned, m.size_bytes) for m in found] == [
            ("a", "away", True, False, NBYTES),
            ("b", "ready", False, True, NBYTES),
        ]
        assert house.there == {"b"}


@on_a_loop
async def test_one_that_is_idle_leaves_for_another_and_its_contexts_and_connections_stay(tmp_path: Path) -> None:
    async with front_house(tmp_path, budget=NBYTES) as house:
        first = await house.connect("a")
        context = await first.context("c")
        before = await ask(first, context.id, LONG)
        second = await house.connect("b")
        await house.until_there("b")
        assert await ask(second, (await second.context("c")).id)
        after = await ask(first, context.id, "two")  # on the same connection
        await house.until_there("a")
        detail = await first.show(context.id)
        assert [m.content for m in detail.messages] == [LONG, before, "two", after]
        assert first.is_open and second.is_open
        counts = (await first.stats())["counts"]
        kept = counts["tokens_from_disk"] + counts["tokens_from_cells"]  # there if they were read before their turn
        assert kept >= 192 and counts["tokens_recomputed"] < 64, "only the last chunk is"


@on_a_loop
async def test_the_next_is_started_while_the_system_takes_the_process_of_the_last_apart(tmp_path: Path) -> None:
    async with front_house(tmp_path, budget=NBYTES, behaviour={"a": "ends-late"}) as house:
        first = await house.connect("a")
        context = await first.context("c")
        before = await ask(first, context.id, "one")
        second = await house.connect("b")
        assert await ask(second, (await second.context("c")).id)
        assert house.front.processes["a"].state is ProcessState.LEAVING
        after = await ask(first, context.id, "two")
        assert [m.content for m in (await first.show(context.id)).messages] == ["one", before, "two", after]


@on_a_loop
async def test_one_that_is_in_use_does_not_leave(tmp_path: Path) -> None:
    async with front_house(tmp_path, budget=NBYTES, behaviour={"a": "slow"}) as house:
        first = await house.connect("a")
        stream = first.generate((await first.context("c")).id, HELLO, max_tokens=60)
        await stream.__anext__()
        waiting = asyncio.ensure_future(house.connect("b"))
        done = await stream.done()
        assert done.n_generated == 60
        async with timeout(20):
            assert (await waiting).server["model"] == "b"
        await house.until_there("b")


@on_a_loop
async def test_a_pinned_one_stays_and_others_that_do_not_fit_beside_it_take_turns(tmp_path: Path) -> None:
    async with front_house(tmp_path, "abc", pinned="a", budget=2 * NBYTES) as house:
        for name in "bcb":
            client = await house.connect(name)
            await house.until_there("a", name)
            await client.close()


@on_a_loop
async def test_one_that_nobody_uses_leaves_after_a_while(tmp_path: Path) -> None:
    async with front_house(tmp_path, keep_alive=0.3) as house:
        client = await house.connect("a")
        text = await ask(client, (await client.context("c")).id)
        await house.until_there()
        assert text in [m.content for m in (await client.show((await client.context("c")).id)).messages]
        await house.until_there("a")


@on_a_loop
async def test_when_a_process_is_killed_the_other_goes_on_and_it_serves_again(tmp_path: Path) -> None:
    async with front_house(tmp_path, behaviour={"b": "slow"}) as house:
        first, second = await house.connect("a", retry_s=20), await house.connect("b")
        context = await first.context("c")
        kept = await ask(first, context.id, "one")
        stream = second.generate((await second.context("c")).id, HELLO, max_tokens=40)
        await stream.__anext__()
        pid = house.front.processes["a"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert (await stream.done()).n_generated == 40
        assert await ask(first, context.id, "two")
        assert [m.content for m in (await first.show(context.id)).messages][:3] == ["one", kept, "two"]


@on_a_loop
async def test_who_waits_is_told_how_long_that_will_take(tmp_path: Path) -> None:
    async with front_house(tmp_path, budget=NBYTES, behaviour={"a": "late"}) as house:
        first: list[Loading] = []
        client = await house.connect("a", on_loading=first.append)
        assert first[0] == Loading("a", None) and len(first) >= 2, "nothing is known of the first load"
        context = await client.context("c")
        await (await house.connect("b")).close()
        await house.until_there("b")
        pieces = [piece async for piece in client.generate(context.id, HELLO, max_tokens=3, progress=True)]
        told = [piece.loading.expected_s for piece in pieces if piece.loading is not None]
        known = [seconds for seconds in told if seconds is not None]
        assert told[0] is None, "the other has to leave first"
        assert known and all(0 < seconds < SOON for seconds in known) and known == sorted(known, reverse=True)
        assert any(piece.text for piece in pieces)
        silent = await house.connect(app="other")  # a client that does not ask to be told, of the default model
        assert silent.server["model"] == "a"


@on_a_loop
async def test_a_hint_brings_a_model_that_is_away_while_the_prompt_is_not_complete(tmp_path: Path) -> None:
    async with front_house(tmp_path, budget=NBYTES, behaviour={"a": "late"}) as house:
        client = await house.connect("a")
        context = await client.context("c")
        kept = await ask(client, context.id, "one")
        await (await house.connect("b")).close()
        await house.until_there("b")
        hint = asyncio.ensure_future(client.hint(context.id))
        async with timeout(SOON):
            while house.front.processes["a"].state is not ProcessState.STARTING:  # as soon as the other has left
                await asyncio.sleep(0.01)
        assert not hint.done()
        await hint
        assert house.there == {"a"}, "it is there when the prompt comes"
        assert await ask(client, context.id, "two")
        assert [message.content for message in (await client.show(context.id)).messages][:2] == ["one", kept]


@on_a_loop
async def test_without_retries_a_call_on_a_killed_process_says_so_and_connections_at_rest_stay(tmp_path: Path) -> None:
    async with front_house(tmp_path, behaviour={"a": "slow"}) as house:
        client, resting = await house.connect("a"), await house.connect("a")
        context = await client.context("c")
        kept = await ask(client, context.id, "one")
        stream = client.generate(context.id, HELLO, max_tokens=400)
        await stream.__anext__()
        await asyncio.sleep(MARKED_S)
        os.kill(house.front.processes["a"].pid or 0, signal.SIGKILL)
        with pytest.raises(EngineFailed, match=r"process of the model a ended \(signal 9\)"):
            await stream.done()
        found = await resting.contexts()  # on the same connection, of a process that is started for it
        assert resting.is_open and [info.name for info in found] == ["c"]
        shown = [message.content for message in (await resting.show(context.id)).messages]
        assert shown[:2] == ["one", kept], "what was acknowledged is there"


@on_a_loop
async def test_a_connection_that_a_killed_process_has_not_looked_at_is_served_by_the_next(tmp_path: Path) -> None:
    async with front_house(tmp_path) as house:
        first = await house.connect("a")
        await first.ping()
        await asyncio.sleep(MARKED_S)
        pid = house.front.processes["a"].pid or 0
        os.kill(pid, signal.SIGSTOP)
        second = asyncio.ensure_future(house.connect("a"))
        asked = asyncio.ensure_future(first.context("c"))  # is not read either
        await asyncio.sleep(MARKED_S)
        os.kill(pid, signal.SIGKILL)
        async with timeout(SOON):
            assert (await second).server["model"] == "a"
            assert (await asked).id
        assert first.is_open


@on_a_loop
async def test_what_is_sent_after_part_of_a_frame_is_nothing(tmp_path: Path) -> None:
    """The peer does not read: the process is killed while part of a reply waits to be sent."""
    async with front_house(tmp_path) as house:
        await house.connect("a")
        reader, writer = await asyncio.open_unix_connection(str(house.socket), limit=1024)
        writer.write(encode({"op": "hello", "version": 1, "app": "test", "model": "a"}))
        for number in range(1, 61):
            writer.write(encode({"op": "stats", "id": number}))
        await asyncio.sleep(1.0)
        os.kill(house.front.processes["a"].pid or 0, signal.SIGKILL)
        with contextlib.suppress(ConnectionResetError):
            async with timeout(SOON):
                found = b"".join([data async for data in chunks(reader)])
        assert found.count(b"pool") and b"engine_failed" not in found
        writer.close()


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(4096):
        yield data


@on_a_loop
async def test_copies_of_connections_are_closed_with_them(tmp_path: Path) -> None:
    async with front_house(tmp_path) as house:
        await (await house.connect("a")).close()
        before = n_descriptors()
        for _ in range(20):
            client = await house.connect("a")
            await client.ping()
            await client.close()
        async with timeout(SOON):
            while n_descriptors() > before:
                await asyncio.sleep(0.01)


def n_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@on_a_loop
async def test_a_model_that_cannot_be_loaded_says_why_and_harms_no_other(tmp_path: Path) -> None:
    async with front_house(tmp_path, behaviour={"a": "unreadable"}) as house:
        for _ in range(2):  # the second is told at once, from the pause after the failure
            with pytest.raises(ModelUnreadable, match="is cut"):
                await house.connect("a")
        assert (await house.connect("b")).server["model"] == "b"


@on_a_loop
async def test_a_process_that_dies_at_its_start_is_an_error_not_a_wait(tmp_path: Path) -> None:
    async with front_house(tmp_path, behaviour={"a": "dies", "b": "dies-once"}) as house:
        with pytest.raises(LlmaasError, match="signal 9"):
            await house.connect("a")
        with pytest.raises(LlmaasError, match="signal 9"):
            await house.connect("b")
        await asyncio.sleep(0.6)  # the pause after a failure
        assert (await house.connect("b")).server["model"] == "b"


@on_a_loop
async def test_a_client_that_goes_while_the_model_is_loaded_is_no_harm(tmp_path: Path) -> None:
    async with front_house(tmp_path) as house:
        waiting = asyncio.ensure_future(house.connect("a"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert (await house.connect("a")).server["model"] == "a"


@on_a_loop
async def test_connections_that_say_nothing_or_nonsense_are_ended(tmp_path: Path) -> None:
    async with front_house(tmp_path, limits=Limits(hello_s=0.2)) as house:
        for said, why in (
            (b"", "no hello within"),
            (encode({"op": "ping", "id": 1}), "the first frame must be a hello"),
            (b"\0\xff\xff\xff", "before the hello"),
            (b"\0\0\0\1\xc1", "msgpack"),
            (encode({"op": "hello", "version": 9, "app": "x"}), "protocol version"),
            (encode({"op": "hello", "version": 1, "app": "x", "model": ""}), "model"),
        ):
            reader, writer = await asyncio.open_unix_connection(str(house.socket))
            writer.write(said)
            async with timeout(5):
                assert why.encode() in await reader.read(), said
            writer.close()
        assert house.there == set()


@on_a_loop
async def test_a_hello_that_comes_in_pieces_and_with_requests_behind_it_is_handed_on_whole(tmp_path: Path) -> None:
    async with front_house(tmp_path) as house:
        reader, writer = await asyncio.open_unix_connection(str(house.socket))
        data = encode({"op": "hello", "version": 1, "app": "x", "model": "b"}) + encode({"op": "ping", "id": 7})
        for byte in data:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        found = b""
        async with timeout(20):
            while b"\xa2id\x07" not in found:
                found += await reader.read(4096)
        assert b"hello" in found and b"done" in found
        writer.close()


@on_a_loop
async def test_clients_that_go_while_their_model_is_away_are_forgotten(tmp_path: Path) -> None:
    async with front_house(tmp_path, keep_alive=0.2) as house:
        clients = [await house.connect("a") for _ in range(3)]
        await house.until_there()
        for client in clients:
            await client.close()
        await asyncio.sleep(0.1)
        assert house.there == set()


@on_a_loop
async def test_when_the_front_ends_every_client_is_told_and_no_process_is_left(tmp_path: Path) -> None:
    async with front_house(tmp_path) as house:
        clients = [await house.connect("a"), await house.connect("b")]
        pids = [process.pid for process in house.front.processes.values()]
    for client in clients:
        with pytest.raises(LlmaasError):
            await client.ping()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)
    assert not house.socket.exists()


@on_a_loop
async def test_an_app_that_gets_a_token_is_nobodys_without_it_in_any_model(tmp_path: Path) -> None:
    """Stores of tests have a file of apps each, so that only the ending of connections shows here."""
    async with front_house(tmp_path) as house:
        other = await house.connect("b", "mail")
        admin = await house.connect("a", admin=True)
        made = await admin.app_add("mail")
        assert house.there == {"a"}, "the other process has left, and reads the file anew when it comes back"
        with pytest.raises(LlmaasError):
            await other.ping()
        with pytest.raises(BadToken):
            await house.connect("a", "mail")
        assert (await house.connect("a", "mail", token=made.token)).server["app"].endswith("/mail")


def test_a_socket_in_use_is_not_taken(tmp_path: Path) -> None:
    @on_a_loop
    async def run() -> None:
        async with front_house(tmp_path):
            with pytest.raises(LlmaasError, match=r"holds|answers"):
                async with front_house(tmp_path):
                    pass

    run()

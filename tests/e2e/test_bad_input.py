"""Whatever a client sends, it gets one clear error, the others get their answers, and nothing changes.

Every test sends something wrong on a real socket while two other apps use the same daemon. At the end ``serving`` and
``company`` check that these got the right answers, that the books balance and that the store is sound.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.limits import Limits
from llmaas.calls import FinishReason
from llmaas.errors import LlmaasError
from llmaas.records import Message
from tests.support.daemon import CELLS, HELLO, SOON, Daemon, Peer, answer_to, ask, busy_daemon, company, serving, told
from tests.support.loop import on_a_loop

# -- contexts that do not exist, or that belong to another app


def operations(client: AsyncClient, ref: str) -> dict[str, Callable[[], Any]]:
    return {
        "append": lambda: client.append(ref, HELLO),
        "generate": lambda: client.generate(ref, HELLO).done(),
        "fork": lambda: client.fork(ref),
        "truncate": lambda: client.truncate(ref, n_tokens=0),
        "show": lambda: client.show(ref),
        "delete": lambda: client.delete(ref),
    }


@on_a_loop
async def test_a_context_of_another_app_looks_just_like_none(tmp_path: Path) -> None:
    async with (
        busy_daemon(tmp_path) as daemon,
        daemon.connect("mine") as mine,
        daemon.connect("other") as other,
    ):
        info = await mine.create(name="secret", system="The code is 1234.")
        await ask(mine, "secret")
        before = await mine.show("secret")
        seen: dict[str, set[tuple[str, str]]] = {}
        for ref in ("0" * 16, info.id, "secret"):
            for op, do in operations(other, ref).items():
                with told("unknown_context", ref) as error:
                    await do()
                seen.setdefault(op, set()).add((error[0].message.replace(ref, "?"), error[0].hint))
        assert all(len(ways) == 1 for ways in seen.values()), seen
        assert await other.contexts() == []
        assert await mine.show("secret") == before
        assert (await other.create(name="secret")).id != info.id, "a name is one app's own"


@pytest.mark.parametrize(("uid", "admin"), [(54321, True), (os.geteuid(), False)])
@on_a_loop
async def test_only_the_operator_may_look_into_every_app(tmp_path: Path, uid: int, admin: bool) -> None:
    """The daemon's user on the admin socket: not another user, and not an app of that user on the apps' socket."""
    async with (
        busy_daemon(tmp_path, uid_of=lambda sock: uid) as daemon,
        daemon.connect("nosy", admin=admin) as client,
    ):
        wishes: list[Callable[[], Any]] = [
            lambda: client.contexts(everyone=True),
            lambda: client.show("0" * 16, everyone=True),
            lambda: client.delete("0" * 16, everyone=True),
            lambda: client.limit(None, 1.0),
            lambda: client.limit("54321/victim", 1.0),
            lambda: client.budget(pool_bytes=0),
            lambda: client.budget(),
            lambda: client.adapter_add("x", "/dev/zero"),
            lambda: client.adapter_remove("red"),
        ]
        for do in wishes:
            with told("forbidden"):
                await do()


@on_a_loop
async def test_contexts_without_a_name_made_at_once_are_all_made(tmp_path: Path) -> None:
    async with busy_daemon(tmp_path) as daemon, daemon.connect("hasty") as client:
        made = await asyncio.gather(*[client.create() for _ in range(8)])
        made += await asyncio.gather(*[client.fork(made[0].id) for _ in range(8)])
        assert len({info.name for info in made}) == len({info.id for info in made}) == 16


@on_a_loop
async def test_of_two_that_want_one_name_at_once_one_gets_it(tmp_path: Path) -> None:
    async with busy_daemon(tmp_path) as daemon, daemon.connect("hasty") as client:
        made = await asyncio.gather(*[client.create(name="inbox") for _ in range(4)], return_exceptions=True)
        codes = [e.code for e in made if isinstance(e, LlmaasError)]
        assert codes == ["context_exists"] * 3
        assert [info.name for info in await client.contexts()] == ["inbox"]
        assert await ask(client, "inbox") == answer_to("hello")


# -- frames


@on_a_loop
async def test_an_oversized_frame_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async def run() -> None:
        async with busy_daemon(tmp_path) as daemon:
            await asyncio.to_thread(announce_too_much, daemon)
            async with daemon.connect("long") as client:
                await client.create(name="c")
                with told("frame_too_large", "4194304"):
                    await client.append("c", prompt="x" * (5 << 20))
                assert await ask(client, "c") == answer_to("hello"), "the connection is still good"

    def announce_too_much(daemon: Daemon) -> None:
        with Peer(daemon.socket) as peer:
            peer.hello()
            peer.sock.sendall(struct.pack(">I", (4 << 20) + 1) + b"x")
            failed = peer.receive()
            assert (failed["id"], failed["code"]) == (None, "frame_too_large")
            assert "4194305" in failed["message"] and "4194304" in failed["message"] and failed["hint"]
            assert peer.hung_up()

    await run()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(struct.pack(">I", 5) + b"\xc1abcd", id="not msgpack"),
        pytest.param(struct.pack(">I", 3) + b"\x93\x01\x02", id="cut short"),
        pytest.param(struct.pack(">I", 1) + b"\x07", id="a number"),
        pytest.param(struct.pack(">I", 0), id="nothing"),
        pytest.param(struct.pack(">I", 3) + b"\x81\x01\x02", id="a key that is no string"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
    ],
)
@pytest.mark.parametrize("greeted", [True, False])
@on_a_loop
async def test_a_malformed_frame_is_told_and_the_connection_ends(tmp_path: Path, data: bytes, greeted: bool) -> None:
    def misbehave(daemon: Daemon) -> None:
        with Peer(daemon.socket) as peer:
            if greeted:
                peer.hello()
            peer.sock.sendall(data)
            failed = peer.receive()
            assert failed["code"] == ("frame_too_large" if data.startswith(b"GET") else "malformed_frame")
            assert failed["id"] is None and failed["message"] and failed["hint"]
            assert peer.hung_up()

    async with serving(tmp_path) as daemon, company(daemon, 1, least=3):
        await asyncio.to_thread(misbehave, daemon)


@on_a_loop
async def test_another_protocol_version_is_told_both_versions(tmp_path: Path) -> None:
    def misbehave(daemon: Daemon) -> None:
        for version in (0, 2, 999):
            with Peer(daemon.socket) as peer:
                failed = peer.hello(version=version)
                assert failed["code"] == "version_mismatch"
                assert str(version) in failed["message"] and "version 1" in failed["message"]
                assert "upgrade" in failed["hint"]
                assert peer.hung_up()

    async with busy_daemon(tmp_path) as daemon:
        await asyncio.to_thread(misbehave, daemon)


@on_a_loop
async def test_noise_and_peers_that_come_and_go_harm_nobody(tmp_path: Path) -> None:
    def misbehave(daemon: Daemon) -> None:
        rng = random.Random(7)
        for i in range(60):
            with Peer(daemon.socket) as peer, contextlib.suppress(OSError, LlmaasError):
                if i % 3:
                    peer.hello()
                    peer.send({"id": i, "op": rng.choice(["create", "list", "generate"]), "context": "x"})
                if i % 2:
                    peer.sock.sendall(rng.randbytes(rng.randrange(200)))
                elif i % 4:
                    peer.sock.sendall(struct.pack(">I", 100) + b"half of it")

    async with busy_daemon(tmp_path) as daemon:
        await asyncio.to_thread(misbehave, daemon)


@on_a_loop
async def test_who_does_not_say_hello_is_sent_away(tmp_path: Path) -> None:
    def misbehave(daemon: Daemon) -> None:
        with Peer(daemon.socket) as peer:
            assert "hello" in peer.receive()["message"]
            assert peer.hung_up()

    async with busy_daemon(tmp_path, limits=Limits(hello_s=0.2)) as daemon:
        await asyncio.to_thread(misbehave, daemon)


@on_a_loop
async def test_who_does_not_read_its_answers_is_dropped_and_its_requests_end(tmp_path: Path) -> None:
    def misbehave(daemon: Daemon) -> int:
        """How many terminal replies the peer got."""
        with Peer(daemon.socket) as peer:
            peer.hello()
            for i in range(4):
                peer.send({"id": i, "op": "create", "name": f"c{i}"})
                peer.receive()
            for i in range(4):
                wordy = {"prompt": "x", "max_tokens": 1000, "logprobs": 20}  # more than any socket takes
                peer.send({"id": i, "op": "generate", "context": f"c{i}", **wordy})
            poll = select.poll()
            poll.register(peer.sock, select.POLLHUP)
            assert poll.poll(1000 * SOON), "it was never dropped"
            ended = 0
            with contextlib.suppress(ConnectionError):
                while True:
                    ended += peer.receive()["type"] != "piece"
            return ended

    limits = Limits(max_frame=16384, write_buffer=32768)
    async with busy_daemon(tmp_path, limits=limits) as daemon:
        assert await asyncio.to_thread(misbehave, daemon) < 4


# -- the length of a context


@on_a_loop
async def test_a_prompt_longer_than_the_context_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    async with busy_daemon(tmp_path) as daemon, daemon.connect("long") as client:
        await client.create(name="c")
        first = await ask(client, "c")
        before = await client.show("c")
        too_long: list[Callable[[], Any]] = [
            lambda: client.append("c", [Message("user", "x" * CELLS)]),
            lambda: client.generate("c", prompt="x" * 100_000).done(),
        ]
        for do in too_long:
            with told("context_too_long", f"at most {CELLS}"):
                await do()
        after = await client.show("c")
        assert (after.messages, after.info.n_tokens) == (before.messages, before.info.n_tokens)
        assert [first, await ask(client, "c")] == [answer_to("hello"), answer_to("hello", "hello")]


@on_a_loop
async def test_a_context_that_grows_to_its_limit_says_so_and_can_be_shortened(tmp_path: Path) -> None:
    async with busy_daemon(tmp_path) as daemon, daemon.connect("long") as client:
        await client.create(name="c")
        stream = client.generate("c", [Message("user", "x" * 700)], max_tokens=100_000)
        done = await stream.done()
        assert (done.reason, done.n_tokens) == (FinishReason.CONTEXT_FULL, CELLS)
        detail = await client.show("c")
        assert (detail.info.n_tokens, detail.messages[-1].content) == (CELLS, stream.text)
        more: list[Callable[[], Any]] = [
            lambda: client.generate("c", HELLO).done(),
            lambda: client.append("c", HELLO),
        ]
        for do in more:
            with told("context_too_long", f"at most {CELLS}"):
                await do()
        assert (await client.show("c")).messages == detail.messages
        await client.truncate("c", n_messages=0)
        assert await ask(client, "c") == answer_to("hello")


@on_a_loop
async def test_text_that_might_have_become_a_stop_string_is_told_when_the_context_is_full(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("long") as client:
        await client.create(name="free")
        free = client.generate("free", [Message("user", "x" * 700)], max_tokens=100_000)
        await free.done()
        await client.create(name="held")
        stop = free.text[-1] + "-never"  # its first character is the last one of the answer, which is held back
        held = client.generate("held", [Message("user", "x" * 700)], max_tokens=100_000, stop=[stop])
        done = await held.done()
        assert done.reason is FinishReason.CONTEXT_FULL
        assert held.text == free.text
        assert (await client.show("held")).messages[-1].content == free.text

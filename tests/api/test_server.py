"""The server: one terminal reply for every request, whatever peers do; one daemon per socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import socket
import stat
import struct
from collections import Counter
from pathlib import Path

import msgpack
import pytest

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.server import Limits, serve
from llmaas.api.wire import Frame, encode
from llmaas.errors import ConfigError, SocketInUse
from llmaas.records import ContextInfo
from tests.support.loop import on_a_loop
from tests.support.scripted import HELLO, Peer, ScriptedBackend, peer, serving, until

SMALL = Limits(max_frame=16384, write_buffer=65536)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "llmaas.sock"


async def with_context(path: Path, *, app: str = "mail") -> Peer:
    found = await peer(path, app=app)
    reply = await found.ask(0, "create", name="inbox")
    assert reply["type"] == "done"
    return found


def terminals(frames: list[Frame]) -> Counter[object]:
    return Counter(frame["id"] for frame in frames if frame["type"] in ("done", "failed"))


async def collect(from_: Peer, n_terminal: int) -> list[Frame]:
    """Frames until so many requests have ended, and then proof that nothing more was said about them."""
    found: list[Frame] = []
    while sum(terminals(found).values()) < n_terminal:
        frame = await from_.frame()
        assert frame is not None
        found.append(frame)
    from_.send({"id": 2**40, "op": "ping"})
    assert await from_.frame() == {"id": 2**40, "type": "done", "result": None}
    return found


# -- hello ------------------------------------------------------------------------------------


@on_a_loop
async def test_hello_tells_the_version_the_model_and_the_limits(path: Path) -> None:
    async with serving(path, limits=SMALL):
        client = await peer(path, app=None)
        client.send(HELLO)
        assert await client.frame() == {
            "type": "hello",
            "version": 1,
            "server": "llmaas/0.1.0",
            "model": "scripted",
            "n_ctx": 4096,
            "limits": {"max_frame": 16384, "max_in_flight": 64},
        }
        await client.close()


@pytest.mark.parametrize(
    ("first", "code", "says"),
    [
        ({**HELLO, "version": 2}, "version_mismatch", "version 1"),
        ({**HELLO, "version": 0, "realm": "x"}, "version_mismatch", "version 1"),
        ({**HELLO, "version": "1"}, "bad_request", "'version'"),
        ({**HELLO, "app": "a/b"}, "bad_request", "'app'"),
        ({"op": "hello", "version": 1}, "bad_request", "'app'"),
        ({**HELLO, "realm": "x"}, "bad_request", "'realm'"),
        ({"id": 1, "op": "list"}, "bad_request", "first frame must be a hello"),
        ({}, "bad_request", "first frame must be a hello"),
    ],
)
@on_a_loop
async def test_a_wrong_hello_is_told_and_ends_the_connection(path: Path, first: Frame, code: str, says: str) -> None:
    async with serving(path):
        client = await peer(path, app=None)
        client.send(first, {"id": 2, "op": "ping"})
        (told,) = await client.rest()
        assert (told["id"], told["type"], told["code"]) == (None, "failed", code)
        assert says in told["message"]
        await client.close()
        await (await peer(path)).close()


@on_a_loop
async def test_who_says_nothing_is_sent_away(path: Path) -> None:
    async with serving(path, limits=Limits(hello_s=0.05)):
        client = await peer(path, app=None)
        (told,) = await client.rest()
        assert told["code"] == "bad_request"
        assert "no hello" in told["message"]
        await client.close()
        patient = await peer(path)
        await asyncio.sleep(0.1)
        assert (await patient.ask(1, "ping"))["type"] == "done"
        await patient.close()


# -- requests ---------------------------------------------------------------------------------


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


# -- bad bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack(">I", 1) + b"\xc1", "malformed_frame"),
        (struct.pack(">I", 0), "malformed_frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "frame_too_large"),
        (struct.pack(">I", 16385) + b"x" * 3_000_000, "frame_too_large"),
    ],
)
@pytest.mark.parametrize("app", [None, "mail"])
@on_a_loop
async def test_bad_bytes_are_told_even_while_more_are_sent_then_the_connection_ends(
    path: Path, data: bytes, code: str, app: str | None
) -> None:
    async with serving(path, limits=SMALL):
        client, other = await peer(path, app=app), await peer(path)
        client.writer.write(data)
        await client.writer.drain()
        (told,) = await client.rest()
        assert (told["id"], told["type"], told["code"]) == (None, "failed", code)
        await client.close()
        assert (await other.ask(1, "ping"))["type"] == "done"
        await other.close()


@on_a_loop
async def test_requests_before_bad_bytes_are_answered_first(path: Path) -> None:
    async with serving(path):
        client = await peer(path)
        bad = msgpack.packb([1])
        client.send({"id": 1, "op": "ping"})
        client.writer.write(struct.pack(">I", len(bad)) + bad)
        frames = await client.rest()
        assert [(f["id"], f.get("code")) for f in frames] == [(1, None), (None, "malformed_frame")]
        await client.close()


# -- peers that misbehave ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "abort", "half close", "bad bytes"])
@on_a_loop
async def test_a_peer_that_goes_away_has_its_requests_cancelled(path: Path, way: str) -> None:
    async with serving(path) as (backend, server):
        client, other = await with_context(path), await peer(path)
        client.send(*({"id": i, "op": "generate", "context": "inbox", "prompt": "wait"} for i in (1, 2)))
        other.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "wait"})
        await until(lambda: len(backend.running) == 3)
        if way == "close":
            client.writer.close()
        elif way == "abort":
            client.writer.transport.abort()
        elif way == "half close":
            client.writer.write_eof()
        else:
            client.writer.write(b"\xff" * 8)
        await until(lambda: len(backend.running) == 1)
        assert sorted(backend.cancelled) == [1, 2]
        await client.close()
        await until(lambda: len(server.connections) == 1)
        assert (await other.frame() or {})["type"] == "piece"
        await other.close()


def test_nobody_complains_of_a_peer_that_asks_much_and_is_gone_before_the_first_reply(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(path) as (_, server):
            with socket.socket(socket.AF_UNIX) as hasty:
                hasty.connect(str(path))
                hasty.sendall(encode(HELLO) + b"".join(encode({"id": i, "op": "ping"}) for i in range(20)))
            other = await peer(path)
            await until(lambda: len(server.connections) == 1)
            await other.close()

    asyncio.run(main())
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_reader_that_does_not_read_is_dropped_and_the_others_are_served(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(path, limits=SMALL) as (backend, server):
            sleeper, other = await with_context(path), await peer(path)
            sleeper.writer.transport.pause_reading()
            sleeper.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "flood"})
            await until(lambda: backend.cancelled == [1])
            await until(lambda: len(server.connections) == 1)
            assert (await other.ask(1, "ping"))["type"] == "done"
            sleeper.writer.transport.abort()
            await other.close()

    asyncio.run(main())
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "/mail is dropped" in said


@on_a_loop
async def test_a_reader_that_is_slow_to_read_gets_all_it_asked_for(path: Path) -> None:
    async with serving(path, limits=SMALL) as (backend, _):
        backend.stats_reply = {"text": "x" * 15000}
        client = await peer(path)
        client.writer.transport.pause_reading()
        client.send(*({"id": i, "op": "stats"} for i in range(200)))  # 3 MB of replies, 64 KiB of buffer
        await asyncio.sleep(0.05)
        client.writer.transport.resume_reading()
        assert [f["id"] for f in await collect(client, 200)] == list(range(200))
        await client.close()


@on_a_loop
async def test_connections_beyond_the_limit_are_busy(path: Path) -> None:
    async with serving(path, limits=Limits(max_connections=2)) as (_, server):
        first, second, third = await peer(path), await peer(path), await peer(path, app=None)
        (told,) = await third.rest()
        assert (told["code"], told["retryable"]) == ("busy", True)
        await third.close()
        await first.close()
        await until(lambda: len(server.connections) == 1)
        fourth = await peer(path)
        assert (await fourth.ask(1, "ping"))["type"] == "done"
        await second.close()
        await fourth.close()


# -- who may what -----------------------------------------------------------------------------


@on_a_loop
async def test_an_app_sees_its_own_contexts_and_the_daemons_user_may_see_all(path: Path) -> None:
    async with serving(path):
        mail, notes = await with_context(path), await peer(path, app="notes")
        context = (await mail.ask(1, "list"))["result"][0]["id"]
        assert (await notes.ask(1, "list"))["result"] == []
        assert (await notes.ask(2, "show", context=context))["code"] == "unknown_context"
        assert (await notes.ask(3, "delete", context=context))["code"] == "unknown_context"
        (seen,) = (await notes.ask(4, "list", everyone=True))["result"]
        assert seen["app"] == f"{os.getuid()}/mail"
        assert (await notes.ask(5, "show", context=context, everyone=True))["type"] == "done"
        assert (await notes.ask(6, "delete", context=context, everyone=True))["type"] == "done"
        assert (await mail.ask(2, "list"))["result"] == []
        await mail.close()
        await notes.close()


@pytest.mark.parametrize(("uid", "allowed"), [(0, True), (os.getuid(), True), (os.getuid() + 4242, False)])
@on_a_loop
async def test_everyone_and_budgets_are_for_root_and_the_daemons_user(path: Path, uid: int, allowed: bool) -> None:
    async with serving(path, uid=uid):
        client = await with_context(path)
        assert (await client.ask(1, "list"))["result"][0]["app"] == f"{uid}/mail"
        for op, fields in (("list", {}), ("show", {"context": "inbox"}), ("delete", {"context": "inbox"})):
            reply = await client.ask(2, op, everyone=True, **fields)
            assert reply.get("code") == (None if allowed else "forbidden"), op
        assert len((await client.ask(3, "list"))["result"]) == (0 if allowed else 1)
        reply = await client.ask(4, "budget", pool_bytes=7)
        assert reply.get("code") == (None if allowed else "forbidden")
        assert not allowed or reply["result"]["pool_bytes"]["budget"] == 7
        await client.close()


@pytest.mark.parametrize(("uid", "allowed"), [(0, True), (os.geteuid(), True), (4242, False)])
@on_a_loop
async def test_adapters_are_registered_by_root_and_the_daemons_user_and_seen_by_all(
    path: Path, uid: int, allowed: bool
) -> None:
    async with serving(path, uid=uid) as (backend, _):
        backend.adapters.known["red"] = "/red"
        client = await with_context(path)
        for op, fields in (
            ("adapter_add", {"name": "blue", "path": "/blue"}),
            ("adapter_remove", {"name": "blue"}),
        ):
            reply = await client.ask(1, op, **fields)
            assert reply.get("code") == (None if allowed else "forbidden"), op
        assert backend.adapters.known == {"red": "/red"}
        (seen,) = (await client.ask(2, "adapters"))["result"]
        assert (seen["name"], seen["path"]) == ("red", "/red" if allowed else "")
        created = await client.ask(3, "create", name="other", adapter="red")
        assert created["result"]["adapter"] == "red"
        await client.close()


@on_a_loop
async def test_a_peer_whom_the_kernel_does_not_know_is_sent_away(path: Path) -> None:
    def unknown(_: socket.socket) -> int:
        raise OSError(95, "Operation not supported")

    server = await serve(ScriptedBackend(), path, uid_of=unknown)
    client = await peer(path, app=None)
    client.send(HELLO)
    assert [f["code"] for f in await client.rest()] == ["forbidden"]
    await client.close()
    await server.close()


# -- the socket and its end -------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@on_a_loop
async def test_the_socket_is_for_its_user_only_and_goes_with_the_server(path: Path) -> None:
    umask = os.umask(0)
    try:
        async with serving(path):
            assert (mode(path.parent), mode(path), mode(path.with_name("llmaas.sock.lock"))) == (
                0o700,
                0o600,
                0o600,
            )
    finally:
        assert os.umask(umask) == 0  # serve() put back what it found
    assert not path.exists()


@on_a_loop
async def test_a_live_socket_is_left_alone(path: Path) -> None:
    async with serving(path):
        with pytest.raises(SocketInUse):
            await serve(ScriptedBackend(), path)
        await (await peer(path)).close()


@on_a_loop
async def test_a_live_socket_of_a_program_that_takes_no_lock_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        with pytest.raises(SocketInUse, match="answers"):
            await serve(ScriptedBackend(), path)
    assert path.is_socket()


@on_a_loop
async def test_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async with serving(path):
        await (await peer(path)).close()


@on_a_loop
async def test_a_socket_that_another_put_in_its_place_is_not_removed(path: Path) -> None:
    async with serving(path):
        path.rename(path.with_name("old"))  # keeps the inode in use
        path.touch()
    assert path.is_file()


@pytest.mark.parametrize("what", ["file", "directory", "long", "no right", "parent is a file"])
@on_a_loop
async def test_a_path_that_cannot_be_served_is_a_clear_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.sock"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    elif what == "long":
        path = tmp_path / ("x" * 108)
    elif what == "no right":
        path = Path("/proc/llmaas/x.sock")
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "x.sock"
    with pytest.raises(ConfigError, match=re.escape(path.name)) as caught:
        await serve(ScriptedBackend(), path)
    assert caught.value.hint
    if what == "file":
        assert path.read_text() == "precious"


@on_a_loop
async def test_a_new_daemon_may_follow_at_once(path: Path) -> None:
    for _ in range(5):
        async with serving(path) as (_, server):
            await (await peer(path)).close()
            await server.close()
            await server.close()  # twice does no harm


@on_a_loop
async def test_shutdown_tells_every_running_request_and_ends_every_connection(path: Path) -> None:
    async with serving(path) as (backend, server):
        client, idle, mute = await with_context(path), await peer(path), await peer(path, app=None)
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "wait"})
        client.send({"id": 2, "op": "append", "context": "inbox", "prompt": "wait"})
        client.send({"id": 3, "op": "create", "name": "slow"})
        await until(lambda: len(backend.running) == 2)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        backend.gate.set()
        frames = await client.rest()
        ends = [(f["id"], f["code"]) for f in frames if f["type"] == "failed"]
        assert sorted(ends, key=str) == [(i, "shutting_down") for i in (1, 2, 3, None)]
        assert sorted(backend.cancelled) == [1, 2]
        for other in (idle, mute):
            assert [(f["id"], f["code"]) for f in await other.rest()] == [(None, "shutting_down")]
            await other.close()
        await client.close()
        await asyncio.wait_for(closing, 5)
        assert not server.connections
        with pytest.raises(FileNotFoundError):
            await asyncio.open_unix_connection(str(path))


@on_a_loop
async def test_shutdown_does_not_wait_for_a_reader_that_does_not_read(path: Path) -> None:
    async with serving(path, limits=Limits(max_frame=1 << 20, write_buffer=1 << 30)) as (_, server):
        client = await with_context(path)
        client.writer.transport.pause_reading()
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "flood"})
        await asyncio.sleep(0.05)
        await asyncio.wait_for(server.close(), 3)
        client.writer.transport.abort()


@pytest.mark.parametrize(
    "bad", [{"max_frame": 100}, {"write_buffer": 16384}, {"max_connections": 0}, {"max_in_flight": 0}, {"hello_s": 0}]
)
def test_limits_that_cannot_work_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**{"max_frame": 16384, "write_buffer": 65536, **bad})  # type: ignore[arg-type]


@on_a_loop
async def test_many_peers_that_come_ask_and_go_leave_nothing_behind(path: Path) -> None:
    async def visit(n: int) -> None:
        client = await peer(path, app=f"app{n}")
        await client.ask(0, "create", name="inbox")
        client.send({"id": 1, "op": "generate", "context": "inbox", "prompt": "count 20" if n % 3 else "wait"})
        if n % 2:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(collect(client, 1), 0.05)
        await client.close()

    async with serving(path) as (backend, server):
        await asyncio.gather(*(visit(n) for n in range(60)))
        await until(lambda: not server.connections and not backend.running and not server.tasks)

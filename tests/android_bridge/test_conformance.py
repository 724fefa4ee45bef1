"""One list that every client passes, whatever its language and however it reaches the daemon."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmaas.engine.fake import FakeEngine
from tests.support.daemon import answer_to
from tests.support.drivers import WAYS, Driver, Way, started
from tests.support.http_edge import HttpEdge, http_edge, running, until
from tests.support.loop import on_a_loop
from tests.support.relay import Relay, Streams, tcp_relay, unix_relay

SYSTEM = "You are brief."
SPLIT = 'Grüße, 世界 😀 ≠ \\ " tab\tend'
"""Characters of one to four bytes, and what is escaped in JSON and in the drivers' lines."""
GRAMMAR = 'root ::= "Grüße, 世界 😀!"'
FORCED = "Grüße, 世界 😀!"


class PacedEngine(FakeEngine):
    """Takes 4 ms for each step, so that an answer can be cut short."""

    def __init__(self, n_cells: int, n_seqs: int, end_rate: float) -> None:
        super().__init__(n_cells, n_seqs, end_rate=end_rate, step_time=lambda n: 0.004)


@dataclass
class Site:
    """A daemon with its server for HTTP, and relays before it, which stay while it is started again."""

    root: Path
    edge: HttpEdge | None = None
    relay: Relay | None = None
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        edge = http_edge(self.root, engine=PacedEngine, n_cells=8192, grace_s=0.5)
        self.edge = await self._running.enter_async_context(edge)
        assert self.relay is not None
        await self.relay.listen()

    async def stop(self) -> None:
        if self.relay is not None:
            self.relay.refuse()
        await self._running.aclose()
        self.edge = None

    def serving(self) -> HttpEdge:
        assert self.edge is not None
        return self.edge

    async def _frames(self) -> Streams:
        return await asyncio.open_unix_connection(self.root / "d.sock")

    async def _http_unix(self) -> Streams:
        return await asyncio.open_unix_connection(self.root / "d-http.sock")

    async def _http_tcp(self) -> Streams:
        return await self.serving().raw()

    def place(self, kind: str) -> str:
        """Where clients find a relay of this kind, which listens while the daemon runs."""
        if kind == "http-tcp":
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = int(free.getsockname()[1])
            self.relay = tcp_relay(self._http_tcp, port)
            return f"http://127.0.0.1:{port}"
        place = self.root / "relay.sock"
        self.relay = unix_relay(self._frames if kind == "socket" else self._http_unix, place)
        return f"http+unix:{place}" if kind == "http-unix" else str(place)


@dataclass
class Trial:
    """A client that goes through the list."""

    way: Way
    site: Site
    relay: Relay
    ask: Driver

    @property
    def retries(self) -> bool:
        """Whether it makes a lost answer again: over HTTP there is nothing by which the daemon would know it again."""
        return not self.way.speaks_http


async def hello(t: Trial) -> None:
    assert await t.ask.ok("hello") == ["fake"]


async def create(t: Trial) -> None:
    for system in (SYSTEM, "another one, which is not looked at"):
        await t.ask.ok("create", "inbox", system)
    assert await t.ask.ok("show", "inbox") == ["system", SYSTEM]
    assert await t.ask.ok("list") == ["inbox"]


async def stream(t: Trial) -> None:
    await t.ask.ok("create", "plain", "")
    reason, n_tokens, n_pieces, text = await t.ask.ok("ask", "plain", 8, "hello")
    assert (reason, text) == ("length", answer_to("hello"))
    assert int(n_tokens) > len("hello") + 8 and int(n_pieces) > 1
    assert (await t.ask.ok("ask", "plain", 8, "and now?"))[3] == answer_to("hello", "and now?")
    assert (await t.ask.ok("show", "plain"))[:4] == ["user", "hello", "assistant", text]


async def split_characters(t: Trial) -> None:
    """Each byte of a reply comes by itself, so that every character of more bytes is cut."""
    t.relay.step = 1
    await t.ask.ok("create", "split", SPLIT)
    assert await t.ask.ok("show", "split") == ["system", SPLIT]
    answer = await t.ask.ok("constrained", "split", 200, GRAMMAR, f"Say {SPLIT}")
    assert (answer[0], answer[3]) == ("stop", FORCED)
    t.relay.step = 777
    messages = await t.ask.ok("show", "split")
    assert messages == ["system", SPLIT, "user", f"Say {SPLIT}", "assistant", FORCED]
    t.relay.step = 1 << 16


async def large(t: Trial) -> None:
    """More than a buffer holds, in both directions."""
    text = "ä😀\n" * 40
    await t.ask.ok("create", "large", text * 20)
    assert await t.ask.ok("show", "large") == ["system", text * 20]
    await t.ask.refused("context_too_long", "ask", "large", 8, "x" * 100_000)
    assert await t.ask.ok("show", "large") == ["system", text * 20]


async def cancel(t: Trial) -> None:
    edge = t.site.serving()
    begun = (await t.ask("cancel", "inbox", "a long story"))[:2]
    assert begun[0] == "cancelled" and begun[1]
    await until(lambda: running(edge) == 0)
    role, content = (await t.ask.ok("show", "inbox"))[-2:]
    assert role == "assistant" and content.startswith(begun[1]) and len(content) < 500
    assert (await t.ask.ok("ask", "inbox", 4, "go on"))[0] == "length"


async def errors(t: Trial) -> None:
    for what in (("show", "nothing"), ("delete", "nothing"), ("hint", "nothing")):
        retryable, *_ = await t.ask.refused("unknown_context", *what)
        assert retryable == "no"
    await t.ask.refused("bad_request", "create", "~reserved", "")
    await t.ask.refused("bad_request", "ask", "inbox", 0, "no tokens at all")
    await t.ask.refused("bad_request", "constrained", "inbox", 8, "no grammar", "x")
    assert await t.ask.ok("hello") == ["fake"], "the client can go on"


async def hint_and_delete(t: Trial) -> None:
    await t.ask.ok("create", "spare", "")
    await t.ask.ok("hint", "spare")
    assert "spare" in await t.ask.ok("list")
    await t.ask.ok("delete", "spare")
    assert "spare" not in await t.ask.ok("list")


async def lost_connection(t: Trial) -> None:
    """The connection is cut in the middle of an answer. A client that can ask again by a key tells the whole answer,
    once; the others fail with what can be tried again, and go on."""
    for name in ("uncut", "cut"):
        await t.ask.ok("create", name, "")
    before, expected = t.relay.n_passed, answer_to("hello", n=60)
    assert (await t.ask.ok("ask", "uncut", 60, "hello"))[3] == expected
    t.relay.cut_after = (t.relay.n_passed - before) // 2
    answer = await t.ask("ask", "cut", 60, "hello")
    assert t.relay.n_cut == 1
    if t.retries:
        assert (answer[1], answer[4]) == ("length", expected)
        assert await t.ask.ok("show", "cut") == ["user", "hello", "assistant", expected]
    else:
        assert answer[:3] == ["failed", "not_serving", "yes"]
        await until(lambda: running(t.site.serving()) == 0)
        assert expected.startswith((await t.ask.ok("show", "cut"))[3])
    assert (await t.ask.ok("ask", "cut", 4, "go on"))[0] == "length"


async def daemon_starts_again(t: Trial) -> None:
    before = await t.ask.ok("show", "plain")
    await t.site.stop()
    asked = asyncio.ensure_future(t.ask("ask", "plain", 4, "still there?"))
    await asyncio.sleep(0.2)
    await t.site.start()
    answer = await asked
    assert answer[1] == "length", answer
    after = await t.ask.ok("show", "plain")
    assert after[: len(before)] == before and after[-2] == "assistant"


LIST: list[Callable[[Trial], Awaitable[None]]] = [
    hello,
    create,
    stream,
    split_characters,
    large,
    cancel,
    errors,
    hint_and_delete,
    lost_connection,
    daemon_starts_again,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@on_a_loop
async def test_a_client_passes_the_list(way: Way, drivers: Callable[[Way], list[str]], tmp_path: Path) -> None:
    command, site = drivers(way), Site(tmp_path)
    place = site.place(way.place)
    assert site.relay is not None
    await site.start()
    try:
        async with started(command, place, retry_s=20) as driver:
            for step in LIST:
                await step(Trial(way, site, site.relay, driver))
    finally:
        await site.stop()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@on_a_loop
async def test_tokens_and_absent_daemons(way: Way, drivers: Callable[[Way], list[str]], tmp_path: Path) -> None:
    command, site = drivers(way), Site(tmp_path)
    place = site.place(way.place)
    async with started(command, place) as driver:
        retryable, _, hint = await driver.refused("not_serving", "hello")
        assert retryable == "yes" and "llmaas serve" in hint
    await site.start()
    try:
        async with site.serving().daemon.connect("cli", admin=True) as operator:
            token = str((await operator.app_add("notes")).token)
        async with started(command, place, app="", token=token) as driver:
            assert await driver.ok("hello") == ["fake"]
            await driver.ok("create", "mine", SYSTEM)
        async with started(command, place, app="", token="llmaas_" + "0" * 64) as driver:
            retryable, *_ = await driver.refused("bad_token", "create", "mine", "")
            assert retryable == "no"
        async with site.serving().daemon.connect("cli", admin=True) as operator:
            assert [info.app.split("/")[1] for info in await operator.contexts(everyone=True)] == ["notes"]
    finally:
        await site.stop()

"""A whole daemon on the fake engine, on a real Unix socket, and apps that use it while a test does harm.

Whatever the test did to it, at the end of ``serving`` the daemon must be idle, its books must balance, and its store
must be sound.
"""

from __future__ import annotations

import asyncio
import socket as sockets
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgpack

from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.api.limits import Limits
from llmaas.api.server import peer_uid, serve
from llmaas.api.wire import Decoder, Frame
from llmaas.calls import Generation
from llmaas.clock import Clock
from llmaas.engine.base import Engine
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.errors import LlmaasError
from llmaas.kvchunks.store.store import Store
from llmaas.records import Message, Precision
from llmaas.service.service import Service
from tests.support.books import Book
from tests.support.checked_app import App
from tests.support.oracle import Oracle, adapter_files
from tests.support.service_house import service_settings

CELLS = 1024
HELLO = [Message("user", "hello")]
LONG = "It was the best of times, it was the worst of times, it was the age of wisdom. "
SOON = 10.0
"""Seconds within which everything must happen, even on a busy machine."""


# The fake engine answers the same over coded KV as over exact KV, down to 4 bits.
_SETTINGS: dict[str, Any] = {"pool_bytes": 1 << 20, "prefill_slice": 64, "bits": Precision(4, 4)}


@dataclass(frozen=True)
class Daemon:
    """A running daemon and its parts."""

    socket: Path
    service: Service
    store: Store
    thread: EngineThread
    end_rate: float
    adapters: dict[str, Path]

    def connect(self, app: str, *, admin: bool = False) -> Any:
        """``async with daemon.connect("mail") as client``; ``admin``: as the operator."""
        return _connected(self.socket, app, admin)

    def app(self, name: str, seed: int = 0, **options: Any) -> App:
        """An app whose oracle is set up as this daemon is."""
        limit = self.service.planner_settings.ctx_limit
        oracle = partial(Oracle, limit, end_rate=self.end_rate, adapters=self.adapters)
        return App(name, seed, oracle, adapters=tuple(self.adapters), **options)

    async def until_idle(self) -> None:
        """Return when no request is active and nothing is left to swap out; it must be soon."""
        await asyncio.wait_for(self.service.wait_idle(), SOON)
        late = time.monotonic() + SOON
        while active(self.service.stats()):  # the event loop removes a call from the table later
            assert time.monotonic() < late, self.service.stats()
            await asyncio.sleep(0.005)


def active(stats: dict[str, Any]) -> int:
    """Requests that wait or run."""
    return int(stats["requests"]["active"])


@asynccontextmanager
async def _connected(socket: Path, app: str, admin: bool) -> AsyncIterator[AsyncClient]:
    client = await AsyncClient.connect(socket, app=app, admin=admin)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def serving(
    root: Path,
    *,
    engine: Callable[..., Engine] = FakeEngine,
    store: Callable[[Path], Store] = Store,
    limits: Limits | None = None,
    uid_of: Callable[[sockets.socket], int] = peer_uid,
    end_rate: float = 0.0,
    n_cells: int = CELLS,
    clock: Clock | None = None,
    **settings: Any,
) -> AsyncIterator[Daemon]:
    own = store(root / "data")
    thread = EngineThread(lambda: engine(n_cells, 8, end_rate=end_rate))
    adapters = adapter_files(root / "adapters", ("red", "blue"))
    base = {**_SETTINGS, "adapters": tuple(adapters.items()), "adapter_bytes": 1500}  # room for one of them
    service = Service(thread, own, service_settings(**{**base, **settings}), clock)
    await service.start()
    server = await serve(service, root / "d.sock", limits=limits or Limits(), uid_of=uid_of)
    daemon = Daemon(root / "d.sock", service, own, thread, end_rate, adapters)
    try:
        yield daemon
        await daemon.until_idle()
        assert service.check() == []
    finally:
        await server.close()
        await service.stop()
        await asyncio.to_thread(thread.close)
        problems = own.check().problems
        own.close()
    assert problems == ()


@asynccontextmanager
async def company(daemon: Daemon, n: int = 2, least: int = 5) -> AsyncIterator[list[App]]:
    """``n`` apps that use the daemon during the block; all their replies must be right, at least ``least`` each."""
    stop = threading.Event()
    apps = [daemon.app(f"bystander-{i}", seed=i) for i in range(n)]
    with ThreadPoolExecutor(n) as pool:
        work = [pool.submit(_work, daemon.socket, app, stop, least) for app in apps]
        try:
            yield apps
        finally:
            stop.set()
            for future in work:
                await asyncio.wait_for(asyncio.wrap_future(future), SOON)


def _work(socket: Path, app: App, stop: threading.Event, least: int) -> None:
    with Client(socket, app=app.name) as client:
        app.run(client, lambda: app.acknowledged < least or not stop.is_set())
        app.say_everywhere(client)
        for id, book in app.books.items():
            app.compare(client, id, book)


@asynccontextmanager
async def busy_daemon(root: Path, **options: Any) -> AsyncIterator[Daemon]:
    """A daemon that two apps use during the block."""
    async with serving(root, **options) as daemon, company(daemon):
        yield daemon


async def ask(client: AsyncClient, context: str, text: str = "hello", n: int = 8) -> str:
    """The answer to a user's message."""
    stream = client.generate(context, [Message("user", text)], max_tokens=n)
    await stream.done()
    return stream.text


def answer_to(*texts: str, n: int = 8) -> str:
    """The answer of a fresh context to the last of these messages, asked one after another."""
    oracle, book, answer = Oracle(CELLS), Book(""), ""
    for text in texts:
        expected = oracle.generate(book, [Message("user", text)], None, Generation(n))
        assert expected is not None
        book, answer = expected.after(), expected.text
    return answer


def counts(daemon: Daemon) -> dict[str, int]:
    """The planner's counters."""
    found = daemon.service.stats()["counts"]
    assert isinstance(found, dict)
    return found


class Peer:
    """A raw connection, to send what no client would send."""

    def __init__(self, socket: Path) -> None:
        self.sock = sockets.socket(sockets.AF_UNIX)
        self.sock.settimeout(SOON)
        self.sock.connect(str(socket))
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    def send(self, frame: Any) -> None:
        body = msgpack.packb(frame)
        self.sock.sendall(struct.pack(">I", len(body)) + body)

    def hello(self, app: str = "raw", version: int = 1) -> Frame:
        self.send({"op": "hello", "version": version, "app": app})
        return self.receive()

    def receive(self) -> Frame:
        """The next frame. Raises ConnectionError when the daemon has hung up."""
        while not self._frames:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the daemon hung up")
            self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    def hung_up(self) -> bool:
        """Whether the daemon has closed the connection. It must not have sent a frame."""
        try:
            self.receive()
        except ConnectionError:
            return True
        return False

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@contextmanager
def told(code: str, *words: str) -> Iterator[list[LlmaasError]]:
    """The block must raise the error with this code, these words in its message, and a hint that says what to do.

    The error is in the list afterwards.
    """
    caught: list[LlmaasError] = []
    try:
        yield caught
    except LlmaasError as e:
        caught.append(e)
        assert e.code == code, f"{e.code}: {e.message}"
        for word in words:
            assert word in e.message
        assert len(e.message) > 10 and len(e.hint) > 20 and e.hint.endswith("."), e.hint
    else:
        raise AssertionError(f"no error; {code} was due")

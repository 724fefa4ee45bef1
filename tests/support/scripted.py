"""A backend that plays what its prompts say, and a raw peer: for the tests of the edge."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmaas.api.backend import Evict
from llmaas.api.server import Limits, Server, peer_uid, serve
from llmaas.api.wire import Decoder, Frame, encode
from llmaas.calls import CallSpec, Done, FinishReason, Generation, Piece, SwitchReport, Terms
from llmaas.errors import (
    BadToken,
    Cancelled,
    ContextExists,
    ContextTooLong,
    UnknownAdapter,
    UnknownContext,
    UnknownRequest,
)
from llmaas.records import (
    NO_APP_QUOTA,
    AdapterInfo,
    AppId,
    AppInfo,
    AppQuota,
    AppUse,
    ContextDetail,
    ContextId,
    ContextInfo,
    ContextSpan,
    ExportedContext,
    Message,
    NewToken,
    RequestId,
    RequestInfo,
    Resolved,
)
from llmaas.slots.grants import NO_SLOTS, SlotSettings

PATIENCE_S = 30.0
"""How long a test waits for what must happen soon: on a busy machine that takes a while."""


class ScriptedAdapters:
    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def infos(self, *, paths: bool) -> list[AdapterInfo]:
        return [AdapterInfo(name, path if paths else "", "f", 5, False) for name, path in self.known.items()]

    async def add(self, name: str, path: str) -> AdapterInfo:
        self.known[name] = path
        return self.infos(paths=True)[-1]

    async def remove(self, name: str) -> None:
        if self.known.pop(name, None) is None:
            raise UnknownAdapter(f"there is no adapter {name!r}")


class ScriptedApps:
    """Apps that have tokens; those that the operator adds get their own name as the token."""

    def __init__(self) -> None:
        self.tokens: dict[str, AppId] = {}
        self.urgent: dict[AppId, int] = {}
        self.evict: Evict | None = None

    def app_of(self, token: str) -> AppId | None:
        return self.tokens.get(token)

    def refuse_without(self, app: AppId) -> None:
        if app in self.tokens.values():
            raise BadToken(f"the app {app} has a token")

    def infos(self) -> list[AppInfo]:
        return [AppInfo(app, 1.5, NO_APP_QUOTA, AppUse()) for app in self.tokens.values()]

    def most_urgent(self, app: AppId) -> int | None:
        return self.urgent.get(app)

    async def set_quota(self, app: AppId, quota: AppQuota) -> AppInfo:
        if quota.priority is not None:
            self.urgent[app] = quota.priority
        return AppInfo(app, None, quota, AppUse())

    async def add(self, app: AppId, *, contexts: str, quota: AppQuota | None = None) -> NewToken:
        self.tokens[app] = app
        return NewToken(app, app)

    async def remove(self, app: AppId, *, contexts: str) -> None:
        del self.tokens[app]

    async def rotate(self, app: AppId) -> NewToken:
        return NewToken(app, app)

    def on_evict(self, evict: Evict) -> None:
        self.evict = evict


class ScriptedBackend:
    """Prompts: ``count N``, ``wait``, ``flood``, ``at once``, ``stubborn`` (completes when cancelled), ``boom``,
    ``boom now``, ``too long``; any other counts to 1. A context named ``slow`` is created when ``gate`` is set, one
    named ``boom`` never is."""

    def __init__(self) -> None:
        self.known: dict[str, ContextDetail] = {}
        self.running: dict[RequestId, tuple[asyncio.Future[Done], str]] = {}
        self.cancelled: list[RequestId] = []
        self.generations: list[Generation | None] = []
        self.terms: list[Terms] = []
        self.operators: list[bool] = []
        self.priorities: list[tuple[RequestId, int]] = []
        self.hints: list[ContextId] = []
        self.gate = asyncio.Event()
        self.n_slow = 0
        """How many contexts named ``slow`` wait, or have waited, for the gate."""
        self.stats_reply: dict[str, object] = {"requests": 3, "tiers": {"cells": 1}}
        self.adapters = ScriptedAdapters()
        self.apps = ScriptedApps()
        self._last = 0

    def hello(self) -> dict[str, object]:
        return {"model": "scripted", "n_ctx": 4096}

    async def create(
        self,
        app: AppId,
        *,
        name: str | None,
        system: str | None,
        adapter: str = "",
        exist_ok: bool = False,
        ttl: float | None = None,
    ) -> ContextInfo:
        if name == "slow":
            self.n_slow += 1
            await self.gate.wait()
        if name == "boom":
            raise RuntimeError("a fault that no one foresaw")
        for detail in self.known.values():
            if (detail.info.app, detail.info.name) != (app, name):
                continue
            if exist_ok:
                return detail.info
            raise ContextExists(f"there is a context {name!r} already")
        context = ContextId(f"{len(self.known):016x}")
        info = ContextInfo(context, app, name or str(context), 7, 1, 1.5, 2.5, (7, 0, 0, 0), adapter=adapter, ttl=ttl)
        self.known[context] = ContextDetail(info, (Message("system", system),) if system else ())
        return info

    def requests_after(
        self, app: AppId | None, number: int, last: int | None = None
    ) -> Iterator[tuple[int, RequestInfo]]:
        for call in sorted(self.running)[-(last or 0) :]:
            if call > number:
                yield (
                    call,
                    RequestInfo(call, AppId("1/x"), ContextId("c"), "c", "generate", 5, "running", 1.0),
                )

    def find_call(self, app: AppId | None, call: int) -> RequestId:
        if RequestId(call) not in self.running:
            raise UnknownRequest(f"no call {call} waits or runs")
        return RequestId(call)

    async def fork(self, app: AppId, context: str, *, name: str | None, n_messages: int | None = None) -> ContextInfo:
        info = self._find(app, context).info
        made = await self.create(app, name=name, system=None)
        return replace(made, n_messages=info.n_messages if n_messages is None else n_messages)

    async def resolve(self, app: AppId, messages: Sequence[Message], *, adapter: str = "") -> Resolved:
        made = await self.create(app, name=None, system=None, adapter=adapter)
        return Resolved(replace(made, anonymous=True), len(messages) - 1)

    async def truncate(self, app: AppId, context: str, *, n_tokens: int | None, n_messages: int | None) -> ContextInfo:
        return self._find(app, context).info

    async def migrate(self, app: AppId | None, context: str) -> ContextInfo:
        return self._find(app, context).info

    @property
    def transfers(self) -> ScriptedBackend:
        return self

    async def export_context(self, app: AppId, context: str) -> ExportedContext:
        found = self._find(app, context)
        spans = (ContextSpan(b"\1\0\0\0", message.role, message.content) for message in found.messages)
        return ExportedContext(found.info.name, "scripted", "", tuple(spans))

    async def import_context(
        self,
        app: AppId,
        exported: ExportedContext,
        *,
        name: str | None = None,
        adapter: str = "",
        ttl: float | None = None,
    ) -> ContextInfo:
        system = exported.spans[0].text
        return await self.create(app, name=name or exported.name, system=system, adapter=adapter, ttl=ttl)

    def hint(self, app: AppId, context: str) -> tuple[RequestId, asyncio.Future[Done]]:
        self.hints.append(self._find(app, context).info.id)
        return self._begin("hint")

    async def delete(self, app: AppId | None, context: str) -> None:
        del self.known[self._find(app, context).info.id]

    def contexts_after(self, app: AppId | None, number: int) -> Iterator[tuple[int, ContextInfo]]:
        numbered = enumerate(list(self.known.values()), 1)
        return ((n, d.info) for n, d in numbered if n > number and app in (None, d.info.app))

    def load(self, app: AppId | None, context: str) -> None:
        self._find(app, context)

    def show(self, app: AppId | None, context: str) -> ContextDetail:
        return self._find(app, context)

    def prioritize(self, request: RequestId, priority: int) -> None:
        self.priorities.append((request, priority))

    def limit(self, app: AppId | None, rate: float | None) -> dict[str, object]:
        return {"rate": rate, "apps": {}} if app is None else {"rate": None, "apps": {str(app): rate}}

    def submit(
        self,
        app: AppId,
        context: str,
        spec: CallSpec,
        emit: Callable[[Piece], None],
        *,
        operator: bool = False,
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        found, turn = self._find(app, context), spec.turn
        script = turn.prompt or (turn.messages[-1].content if turn.messages else "count 1")
        if script == "boom now":
            raise RuntimeError("a fault that no one foresaw")
        if script == "too long":
            raise ContextTooLong("the prompt has 9000 tokens; the context holds 4096")
        request, future = self._begin(script)
        self.generations.append(spec.generation)
        self.terms.append(spec.terms)
        self.operators.append(operator)
        done = Done(found.info.id, FinishReason.STOP, 9, 2, 3, SwitchReport(cells=7), 0.5, 1.5, 20.0)
        if script == "at once":
            emit(Piece("now", (1,)))
            future.set_result(done)
        elif script == "boom":
            future.get_loop().call_soon(future.set_exception, RuntimeError("a fault that no one foresaw"))
        elif script == "wait":
            emit(Piece("so ", (5,)))
        elif script == "flood":
            self._flood(future, emit)
        elif script.startswith("count"):
            self._count(future, emit, done, 0, int(script.split()[1]))
        elif script != "stubborn":
            self._count(future, emit, done, 0, 1)
        return request, future

    def cancel(self, request: RequestId) -> None:
        self.cancelled.append(request)
        future, script = self.running.get(request, (None, ""))
        if future is None or future.done():
            raise UnknownRequest(f"no request {request} runs")
        if script == "stubborn":
            context = next(iter(self.known.values())).info.id
            future.set_result(Done(context, FinishReason.LENGTH, 9, 2, 3, SwitchReport(), 0.5, 1.5, 20.0))
        else:
            future.set_exception(Cancelled("cancelled by the caller", n_generated=1))

    def budget(self, pool_bytes: int | None, disk_bytes: int | None) -> dict[str, object]:
        return {"pool_bytes": {"budget": pool_bytes}, "disk_bytes": {"quota": disk_bytes}}

    def stats(self, *, apps: bool, octaves: bool = False) -> dict[str, object]:
        return self.stats_reply

    def _begin(self, script: str) -> tuple[RequestId, asyncio.Future[Done]]:
        self._last += 1
        request = RequestId(self._last)
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self.running[request] = (future, script)
        future.add_done_callback(lambda f: (self.running.pop(request), f.cancelled() or f.exception()))
        return request, future

    def _find(self, app: AppId | None, context: str) -> ContextDetail:
        for detail in self.known.values():
            if context in (detail.info.id, detail.info.name) and app in (None, detail.info.app):
                return detail
        raise UnknownContext(f"no context {context!r}")

    def _count(
        self, future: asyncio.Future[Done], emit: Callable[[Piece], None], done: Done, i: int, stop: int
    ) -> None:
        if future.done():
            return
        if i == stop:
            future.set_result(done)
            return
        emit(Piece(f"{i} ", (i,)))
        future.get_loop().call_soon(self._count, future, emit, done, i + 1, stop)

    def _flood(self, future: asyncio.Future[Done], emit: Callable[[Piece], None]) -> None:
        if not future.done():
            emit(Piece("x" * 1000, (1,)))
            future.get_loop().call_soon(self._flood, future, emit)


class Peer:
    """A raw connection that may say anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    def send(self, *frames: Frame) -> None:
        self.writer.write(b"".join(encode(frame) for frame in frames))

    async def frame(self) -> Frame | None:
        """The next frame; None at the end of the stream."""
        while not self._frames:
            data = await asyncio.wait_for(self.reader.read(65536), 5)
            if not data:
                return None
            self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    async def rest(self) -> list[Frame]:
        """Every frame up to the end of the stream."""
        found = []
        while (frame := await self.frame()) is not None:
            found.append(frame)
        return found

    async def ask(self, request_id: int, op: str, **fields: Any) -> Frame:
        """One request without pieces, and its reply."""
        self.send({"id": request_id, "op": op, **fields})
        frame = await self.frame()
        assert frame is not None
        return frame

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


HELLO: Frame = {"op": "hello", "version": 1, "app": "mail", "client": "test"}


async def peer(path: Path, *, app: str | None = "mail") -> Peer:
    """A raw connection that has said hello (unless ``app`` is None)."""
    made = Peer(*await asyncio.open_unix_connection(str(path)))
    if app is not None:
        made.send({**HELLO, "app": app})
        reply = await made.frame()
        assert reply is not None
        assert reply["type"] == "hello"
    return made


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


@contextlib.asynccontextmanager
async def serving(
    path: Path,
    *,
    limits: Limits | None = None,
    uid: int | None = None,
    backend: ScriptedBackend | None = None,
    slots: SlotSettings = NO_SLOTS,
) -> AsyncIterator[tuple[ScriptedBackend, Server]]:
    """A scripted daemon; with ``uid`` every peer seems to be that user."""
    backend = backend or ScriptedBackend()
    uid_of = peer_uid if uid is None else lambda sock: uid
    server = await serve(backend, path, limits=limits or Limits(), uid_of=uid_of, slots=slots)
    try:
        yield backend, server
    finally:
        await server.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another turn of the loop."""
    late = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < late, f"it did not happen within {PATIENCE_S:g} s"
        await asyncio.sleep(0.001)


Ask = Callable[[Callable[[ScriptedBackend, Server], Awaitable[Any]]], Any]
"""Runs a coroutine function on the daemon's loop."""


def serving_in_a_thread(
    path: Path,
    *,
    limits: Limits | None = None,
    backend: ScriptedBackend | None = None,
    slots: SlotSettings = NO_SLOTS,
) -> contextlib.AbstractContextManager[Ask]:
    """A scripted daemon for blocking clients."""
    return served_in_a_thread(serving(path, limits=limits, backend=backend, slots=slots))


@contextlib.contextmanager
def served_in_a_thread(
    served: contextlib.AbstractAsyncContextManager[tuple[ScriptedBackend, Server]],
) -> Iterator[Ask]:
    """The same of any that is served so."""
    ready: list[tuple[asyncio.AbstractEventLoop, ScriptedBackend, Server, asyncio.Event]] = []
    started = threading.Event()

    async def main() -> None:
        async with served as (made, server):
            stop = asyncio.Event()
            ready.append((asyncio.get_running_loop(), made, server, stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(5)
    loop, made, server, stop = ready[0]

    def there(work: Callable[[ScriptedBackend, Server], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            return await work(made, server)

        return asyncio.run_coroutine_threadsafe(run(), loop).result(5)

    try:
        yield there
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)

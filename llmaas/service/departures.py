"""Contexts that leave for another node, and those that have come from one.

Law: at each instant one node owns a context, also after a crash. Before another node is told to take it, the store here
knows that it may have it: from then on nobody uses the context here, until that node has said what became of it. What
has arrived is in the store together with the name of its move, so that there is an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Protocol

from llmaas.api.transfer_messages import ExportChunks, Import, ImportChunks
from llmaas.api.transfer_records import ChunkPiece, ExportedChunks, ImportedChunks, MovedContext
from llmaas.calls import CallSpec, Done, Piece
from llmaas.errors import AdapterMismatch, BadRequest, LlmaasError, ModelMismatch, UnknownContext, UnknownNode
from llmaas.kvchunks.store.move_rows import MoveRow, MoveState
from llmaas.planner.events import CancelRequested, Event
from llmaas.records import CHUNK_TOKENS, AppId, ContextId, ContextInfo, ExportedContext, RequestId
from llmaas.service.call import Call
from llmaas.service.chunk_transfers import ChunkTransfers
from llmaas.service.contexts import Contexts
from llmaas.service.live_context import LiveContext, app_from
from llmaas.service.parts import ServiceParts
from llmaas.service.refusals import refuse_if_deleted
from llmaas.service.succession import Succession, ended_there, may_succeed, rest_of, tell_more

_STAGED_S = 600.0
"""Seconds after which what came ahead of a context goes, if the context does not come."""
_MOST_STAGED = 4
"""Of one app and node."""
Mover = Callable[[AppId, str, str, str | None, bool], Awaitable[MovedContext]]
"""(app, context, node, the name there, with chunks): takes the context to the node."""


AskThere = Callable[[CallSpec, Callable[[Sequence[int]], None]], Awaitable[Done]]
"""Asks for the rest of an answer where its context is now; tokens are told as they come."""


class CallTaker(Protocol):
    """A service."""

    def submit(
        self, app: AppId, context: str, spec: CallSpec, emit: Callable[[Piece], None]
    ) -> tuple[RequestId, asyncio.Future[Done]]: ...

    def cancel(self, request: RequestId) -> None: ...


class Departure:
    """A context that is to leave; nothing else uses it meanwhile. ``known``: the move, if the store knows it; then
    nothing is exported any more."""

    def __init__(
        self, moves: Moves, live: LiveContext, exported: ExportedContext, known: MoveRow | None = None
    ) -> None:
        self._moves, self._live, self.exported, self.row = moves, live, exported, known
        self.adapter, self.ttl, self.name = live.adapter, live.row.ttl, live.row.name
        self.successor: Succession | None = None
        """Of the call that was interrupted for this."""

    async def begin(self, move: str, node: str) -> None:
        """From now on the node with this fingerprint may have it."""
        row = MoveRow(move, node, self._live.id, MoveState.LEAVING)
        await self._moves.put(row)
        self.row, self._live.leaving = row, node

    async def chunks(self, indices: tuple[int, ...], offset: int, n_bytes: int) -> ExportedChunks:
        """See ``api.transfer_operations.export_chunks``."""
        return await self._moves.export_chunks(self._live, ExportChunks(self._live.id, indices, offset, n_bytes))

    def goes_on_there(self, ask: AskThere) -> None:
        """The answer that was interrupted, if one was, goes on by ``ask``."""
        if self.successor is not None:
            self.successor.goes_on(partial(self._moves.go_on_there, ask))

    def goes_on_here(self) -> None:
        if self.successor is not None:
            self.successor.goes_on(self._moves.go_on_here)

    def answer_fails(self, error: LlmaasError) -> None:
        if self.successor is not None:
            self.successor.fails(error)

    async def stays(self) -> None:
        """The other node has not taken it, and never will."""
        assert self.row is not None
        await self._moves.forget(self.row)
        self._live.leaving = ""

    async def is_gone(self, node: str) -> None:
        """The other node has it. The store still knows the move, until ``settled``."""
        self._live.moved_to = node
        await self._moves.delete(self._live)

    async def settled(self) -> None:
        """The other node knows that nobody will ask it any more."""
        assert self.row is not None
        await self._moves.forget(self.row)


class AheadContext:
    """A context that is being answered. What its store and its coded chunks hold of it does not change any more."""

    def __init__(self, moves: Moves, live: LiveContext, exported: ExportedContext) -> None:
        self._moves, self._live, self.exported = moves, live, exported
        self.adapter, self.ttl, self.name = live.adapter, live.row.ttl, live.row.name

    async def chunks(self, indices: tuple[int, ...], offset: int, n_bytes: int) -> ExportedChunks:
        """See ``Departure.chunks``."""
        return await self._moves.export_chunks(self._live, ExportChunks(self._live.id, indices, offset, n_bytes))


class Moves:
    """For one event loop. ``mover``: who takes contexts to other nodes; None: nobody does."""

    def __init__(
        self,
        parts: ServiceParts,
        contexts: Contexts,
        chunks: ChunkTransfers,
        export: Callable[[LiveContext], Awaitable[ExportedContext]],
        import_: Callable[..., Awaitable[ContextInfo]],
        most_tokens: int,
        dispatch: Callable[[Event], None],
    ) -> None:
        self._dispatch = dispatch
        self._parts, self._contexts, self._export, self._import = parts, contexts, export, import_
        self.export_chunks, self.import_chunks, self._cover = chunks.export_of, chunks.import_, chunks.cover
        self.delete = contexts.delete_held
        self.most_tokens, self.most_text = most_tokens, most_tokens * parts.engine.token_bytes
        """Of one context."""
        self.mover: Mover | None = None
        self.calls: CallTaker | None = None
        """Who takes the rest of answers whose contexts move; None: a move waits until the answer has ended."""

    @property
    def vocab(self) -> str:
        return self._parts.engine.info.vocab

    # -- from here

    async def move(
        self, app: AppId, context: str, node: str, name: str | None = None, *, chunks: bool = True
    ) -> MovedContext:
        """See ``api.transfer_operations.move``."""
        self._contexts.find_usable(app, context)
        if self.mover is None:
            raise UnknownNode("this daemon goes to no other nodes: it serves several models")
        return await self.mover(app, context, node, name, chunks)

    @asynccontextmanager
    async def departure(self, app: AppId, context: str) -> AsyncIterator[Departure]:
        """The context, once nobody uses it. Raises UnknownContext, ContextDamaged, ModelMismatch, BadRequest."""
        live = self._contexts.find_usable(app, context)
        if live.anonymous:
            raise BadRequest("a context without a name of its own stays where it is", hint="Fork it under a name.")
        successor: Succession | None = None
        waiting = asyncio.ensure_future(live.lock.acquire())
        try:
            await asyncio.sleep(0)  # it stands in the queue now, before calls that come after the interruption
            successor = self._interrupt(live)
            await waiting
            refuse_if_deleted(live)
            leaving = Departure(self, live, await self._exported(live))
            leaving.successor = successor
            yield leaving
        finally:
            if successor is not None:  # whoever took the departure has said more, unless it failed before
                successor.goes_on(self.go_on_here)
            if not waiting.cancel() and not waiting.cancelled():
                live.lock.release()

    def _interrupt(self, live: LiveContext) -> Succession | None:
        """Interrupt the answer that the context gives, if it can go on elsewhere; else it is waited for."""
        calls = [call for call in self._parts.calls.values() if call.live is live]
        if self.calls is None or len(calls) != 1 or not may_succeed(calls[0]):
            return None
        control = calls[0].control
        successor = control.successor = Succession()
        control.cancelled = True
        self._dispatch(CancelRequested(calls[0].id))
        return successor

    async def go_on_there(self, ask: AskThere, call: Call) -> Done:
        """The end of an answer whose context has moved. Raises what the other node says, and NodeUnreachable."""
        rest, engine = rest_of(call), self._parts.engine
        there = None if rest is None else await ask(rest, lambda tokens: tell_more(call, tokens, engine))
        return ended_there(call, there, self._parts.clock.now())

    async def go_on_here(self, call: Call) -> Done:
        """The end of an answer whose context was to move, and has not."""
        assert self.calls is not None
        rest, engine = rest_of(call), self._parts.engine
        if rest is None:
            return ended_there(call, None, self._parts.clock.now())
        emit = lambda piece: tell_more(call, piece.tokens, engine)  # noqa: E731
        request, reply = self.calls.submit(call.live.row.app, call.live.id, rest, emit)
        try:
            return ended_there(call, await reply, self._parts.clock.now())
        except asyncio.CancelledError:
            self.calls.cancel(request)
            raise

    @asynccontextmanager
    async def departure_in_doubt(self, row: MoveRow) -> AsyncIterator[Departure | None]:
        """The context of a move that the store knows; None if it is not here any more."""
        try:
            live = self._contexts.find(None, row.context)
        except UnknownContext:
            yield None
            return
        async with live.lock:
            if live.deleted:
                yield None
            else:
                yield Departure(self, live, ExportedContext(live.row.name, live.row.model, live.row.vocab, ()), row)

    async def _exported(self, live: LiveContext) -> ExportedContext:
        await self._contexts.stored.read(live)
        return await self._export(live)

    async def waits_at(self, app: AppId, context: str) -> AheadContext | None:
        """A context whose answer would be interrupted now: what of it can go ahead. None if there is nothing."""
        live = self._contexts.find_usable(app, context)
        calls = [call for call in self._parts.calls.values() if call.live is live]
        if self.calls is None or len(calls) != 1 or not may_succeed(calls[0]) or live.n_kv < CHUNK_TOKENS:
            return None
        return AheadContext(self, live, await self._export(live))

    # -- to here

    async def stage(self, move: str, node: str, app: AppId, asked: Import) -> ContextInfo:
        """Make what a context consists of that is to come from the node, so that its chunks can come ahead of it. It is
        no app's, and goes by itself. Raises as ``arrive``."""
        if asked.exported.vocab != self.vocab:
            raise ModelMismatch("the model here has another tokenizer than the context's")
        waits = app_from(app, node)
        for info in self._contexts.infos(waits)[_MOST_STAGED - 1 :]:
            await self._contexts.delete(self._contexts.find(waits, info.id))
        return await self._import(waits, asked.exported, name=f"move-{move}", adapter=asked.adapter, ttl=_STAGED_S)

    async def take_staged(
        self, context: ContextId, root: bytes, kv: bytes, pieces: tuple[ChunkPiece, ...]
    ) -> ImportedChunks:
        live = self._contexts.find(None, context)
        return await self.import_chunks(live.row.app, ImportChunks(live.id, root, kv, pieces, trusted=True))

    async def unstage(self, context: ContextId) -> None:
        """The context has come, or does not: what waited for it is not needed any more."""
        with suppress(UnknownContext):
            await self._contexts.delete(self._contexts.find(None, context))

    async def arrive(self, move: str, node: str, app: AppId, asked: Import) -> ContextInfo:
        """Make the context that comes by this move from the node with that fingerprint: whole, or not at all. Raises
        what ``import_context`` does, and ModelMismatch."""
        if asked.exported.vocab != self.vocab:
            raise ModelMismatch(
                "the model here has another tokenizer than the context's",
                hint="Take it over by its text: 'llmaas ctx export' and 'llmaas ctx import'.",
            )
        more = {"name": asked.name, "adapter": asked.adapter, "ttl": asked.ttl, "came_by": (move, node)}
        info = await self._import(app, asked.exported, **more)
        await self._cover(self._contexts.find(None, info.id))
        return info

    def refuse(self, app: AppId, asked: Import, kv: bytes) -> bool:
        """Raises what would keep such a context from being made, as far as that is known before its tokens are. Whether
        chunks of the model and adapter ``kv`` can be used."""
        self._contexts.new(app, asked.exported.name, asked.adapter, asked.ttl)
        usable = kv == self._parts.adapters.root(AppId(""), asked.adapter)
        if asked.adapter and not usable:
            raise AdapterMismatch(f"the adapter {asked.adapter!r} is another one here, or the model is")
        return usable

    async def take_chunks(self, row: MoveRow, root: bytes, kv: bytes, pieces: tuple[ChunkPiece, ...]) -> ImportedChunks:
        """Chunks of a context that came by this move, for it and others that came from there. Raises UnknownContext."""
        live = self._contexts.find(None, row.context)
        return await self.import_chunks(live.row.app, ImportChunks(live.id, root, kv, pieces, trusted=True))

    def answer(
        self, row: MoveRow, spec: CallSpec, emit: Callable[[Piece], None]
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        """Go on with the answer of a context that came by this move. Raises LlmaasError."""
        live = self._contexts.find(None, row.context)
        if self.calls is None:
            raise BadRequest("answers do not go on here")
        return self.calls.submit(live.row.app, live.id, spec, emit)

    def cancel(self, request: RequestId) -> None:
        if self.calls is not None:
            self.calls.cancel(request)

    # -- what the store knows

    async def known(self) -> list[MoveRow]:
        return await self._parts.store_thread.run("", self._parts.store.moves.all)

    async def find(self, move: str) -> MoveRow | None:
        return await self._parts.store_thread.run("", self._parts.store.moves.find, move)

    async def settle(self, row: MoveRow) -> None:
        await self._parts.store_thread.run("", self._parts.store.moves.settle, row)

    async def put(self, row: MoveRow) -> None:
        await self._parts.store_thread.run("", self._parts.store.moves.put, row)

    async def forget(self, row: MoveRow) -> None:
        await self._parts.store_thread.run("", self._parts.store.moves.forget, row.move)

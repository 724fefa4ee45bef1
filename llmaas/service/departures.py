"""Contexts that leave for another node.

Law: at each instant one node owns a context, also after a crash. Before another node is told to take it, the store here
knows that it may have it: from then on nobody uses the context here, until that node has said what became of it.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from llmaas.api.transfer_messages import ExportChunks
from llmaas.api.transfer_records import ExportedChunks, MovedContext, MovedTurn
from llmaas.calls import CallSpec, Done, Piece
from llmaas.errors import BadRequest, LlmaasError, UnknownContext, UnknownNode
from llmaas.kvchunks.store.move_rows import MoveRow, MoveState
from llmaas.kvchunks.store.tokens import pack
from llmaas.planner.events import CancelRequested, Event
from llmaas.records import AppId, ExportedContext
from llmaas.service.arrivals import CallTaker
from llmaas.service.call import Call
from llmaas.service.chunk_transfers import ChunkTransfers
from llmaas.service.contexts import Contexts
from llmaas.service.keyed_turns import leaving_turns
from llmaas.service.live_context import LiveContext
from llmaas.service.move_book import MoveBook
from llmaas.service.parts import ServiceParts
from llmaas.service.refusals import refuse_if_deleted
from llmaas.service.span_records import exported_spans
from llmaas.service.succession import Succession, ended_there, may_succeed, rest_of, tell_more

Mover = Callable[[AppId, str, str, str | None, str], Awaitable[MovedContext]]
"""(app, context, node, the name there, way): takes the context to the node."""
AskThere = Callable[[CallSpec, Callable[[Piece], None]], Awaitable[Done]]
"""Asks for the rest of an answer where its context is now; tokens are told as they come, in pieces without text."""


class Departure:
    """A context that is to leave; nothing else uses it meanwhile. ``known``: the move, if the store knows it; then
    nothing is exported any more."""

    def __init__(
        self, hall: DepartureHall, live: LiveContext, exported: ExportedContext, known: MoveRow | None = None
    ) -> None:
        self._hall, self._live, self.exported, self.row = hall, live, exported, known
        self.adapter, self.ttl, self.name = live.adapter, live.row.ttl, live.row.name
        self.turns: tuple[MovedTurn, ...] = ()
        """The last ones with an idempotency key: asked again where it goes, they are told as here."""
        self.successor: Succession | None = None
        """Of the call that was interrupted for this."""

    async def begin(self, move: str, node: str) -> None:
        """From now on the node with this fingerprint may have it."""
        row = MoveRow(move, node, self._live.id, MoveState.LEAVING)
        await self._hall.book.put(row)
        self.row, self._live.leaving = row, node

    async def chunks(self, indices: tuple[int, ...], offset: int, n_bytes: int) -> ExportedChunks:
        """See ``api.transfer_operations.export_chunks``."""
        return await self._hall.export_chunks(self._live, ExportChunks(self._live.id, indices, offset, n_bytes))

    @property
    def is_answered(self) -> bool:
        """Whether an answer was interrupted, which is to go on."""
        return self.successor is not None

    def goes_on_there(self, ask: AskThere) -> None:
        """The answer that was interrupted, if one was, goes on by ``ask``."""
        if self.successor is not None:
            self.successor.goes_on(partial(self._hall.go_on_there, ask))

    def goes_on_here(self) -> None:
        if self.successor is not None:
            self.successor.goes_on(self._hall.go_on_here)

    def answer_fails(self, error: LlmaasError) -> None:
        if self.successor is not None:
            self.successor.fails(error)

    async def stays(self) -> None:
        """The other node has not taken it, and never will."""
        assert self.row is not None
        await self._hall.book.forget(self.row)
        self._live.leaving = ""

    async def is_gone(self, node: str) -> None:
        """The other node has it. The store still knows the move, until ``settled``."""
        self._live.moved_to = node
        await self._hall.delete(self._live)

    async def settled(self) -> None:
        """The other node knows that nobody will ask it any more."""
        assert self.row is not None
        await self._hall.book.forget(self.row)


class AheadContext:
    """A context that is being answered. What its store, its turn and its coded chunks hold of it does not change any
    more; the answer grows behind it. ``told``: the tokens that the answer was told so far."""

    def __init__(self, hall: DepartureHall, live: LiveContext, exported: ExportedContext, told: array[int]) -> None:
        self._hall, self._live, self.exported, self._told = hall, live, exported, told
        self.adapter, self.ttl, self.name = live.adapter, live.row.ttl, live.row.name

    async def chunks(self, indices: tuple[int, ...], offset: int, n_bytes: int) -> ExportedChunks:
        """See ``Departure.chunks``."""
        return await self._hall.export_chunks(self._live, ExportChunks(self._live.id, indices, offset, n_bytes))

    def tokens_from(self, n_tokens: int) -> bytes:
        """All that there are by now but for the first ones. If the answer ends badly, they will be others.

        What the engine has told of steps in a row, of which the context has nothing before they end, is among them: it
        is a quarter of a second's tokens, more than a round brings.
        """
        tokens = self._live.tokens[:]  # the engine's thread may add some meanwhile
        n_own = len(tokens) - self.exported.n_tokens
        return pack((tokens + self._told[max(0, n_own) :])[n_tokens:])


class DepartureHall:
    """For one event loop. ``mover``: who takes contexts to other nodes; None: nobody does."""

    def __init__(
        self,
        parts: ServiceParts,
        contexts: Contexts,
        chunks: ChunkTransfers,
        export: Callable[[LiveContext], Awaitable[ExportedContext]],
        dispatch: Callable[[Event], None],
    ) -> None:
        self._parts, self._contexts, self._export, self._dispatch = parts, contexts, export, dispatch
        self.export_chunks, self.delete, self.book = chunks.export_of, contexts.delete_held, MoveBook(parts)
        self.known, self.forget = self.book.known, self.book.forget
        self.mover: Mover | None = None
        self.calls: CallTaker | None = None
        """Who takes the rest of answers whose contexts were to move; None: a move waits until the answer has ended."""

    async def move(
        self, app: AppId, context: str, node: str, name: str | None = None, *, way: str = "both"
    ) -> MovedContext:
        """See ``api.transfer_operations.move``."""
        self._contexts.find_usable(app, context)
        if self.mover is None:
            raise UnknownNode("this daemon goes to no other nodes: it serves several models")
        return await self.mover(app, context, node, name, way)

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
            leaving.successor, leaving.turns = successor, await self._turns(live)
            yield leaving
        finally:
            if successor is not None:  # whoever took the departure has said more, unless it failed before
                successor.goes_on(self.go_on_here)
            if not waiting.cancel() and not waiting.cancelled():
                live.lock.release()

    def _interruptible(self, live: LiveContext) -> Call | None:
        """The call that gives the context's answer, if that can go on elsewhere; else it is waited for."""
        calls = [call for call in self._parts.calls.values() if call.live is live]
        if self.calls is None or len(calls) != 1 or not may_succeed(calls[0]):
            return None
        return calls[0]

    def _interrupt(self, live: LiveContext) -> Succession | None:
        """Interrupt the answer that the context gives, if it can go on elsewhere."""
        call = self._interruptible(live)
        if call is None:
            return None
        successor = call.control.successor = Succession()
        call.control.cancelled = True
        self._dispatch(CancelRequested(call.id))
        return successor

    async def go_on_there(self, ask: AskThere, call: Call) -> Done:
        """The end of an answer whose context has moved. Raises what the other node says, and NodeUnreachable."""
        rest, engine = rest_of(call), self._parts.engine
        there = None if rest is None else await ask(rest, lambda piece: tell_more(call, piece, engine))
        return ended_there(call, there, self._parts.clock.now())

    async def go_on_here(self, call: Call) -> Done:
        """The end of an answer whose context was to move, and has not."""
        assert self.calls is not None
        rest, engine = rest_of(call), self._parts.engine
        if rest is None:
            return ended_there(call, None, self._parts.clock.now())
        emit = lambda piece: tell_more(call, piece, engine)  # noqa: E731
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

    async def _turns(self, live: LiveContext) -> tuple[MovedTurn, ...]:
        store = self._parts.store
        return await self._parts.store_thread.run(live.row.app, lambda: leaving_turns(store.turns(live.id)))

    async def answered(self, app: AppId, context: str) -> AheadContext | None:
        """A context whose answer would be interrupted now, so that what there is of it can go ahead; with what its turn
        has added. None if it is not answered, or its answer ends before it moves."""
        live = self._contexts.find_usable(app, context)
        if (call := self._interruptible(live)) is None:
            return None
        exported, pending = await self._export(live), call.pending
        if exported.n_tokens != pending.base:
            return None  # it has ended meanwhile
        spans = (*exported.spans, *exported_spans(pending.spans))
        whole = ExportedContext(exported.name, exported.model, exported.vocab, spans)
        return AheadContext(self, live, whole, call.answer.told)

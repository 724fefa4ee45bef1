"""Contexts that have come from another node, and those that are about to come.

Law: what has arrived is in the store together with the name of its move, so that whoever sent it can be told. What
comes ahead of a context is no app's, and goes by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from llmaas.api.transfer_messages import Import, ImportChunks
from llmaas.api.transfer_records import ChunkPiece, ImportedChunks, MovedTurn
from llmaas.calls import CallSpec, Done, Piece
from llmaas.errors import AdapterMismatch, BadRequest, ModelMismatch, UnknownContext
from llmaas.kvchunks.store.move_rows import MoveRow, MoveState
from llmaas.kvchunks.store.tokens import unpack
from llmaas.planner.events import ChunksCame
from llmaas.records import AppId, ContextId, ContextInfo, RequestId
from llmaas.service.chunk_transfers import ChunkTransfers
from llmaas.service.contexts import Contexts
from llmaas.service.interpreter import Interpreter
from llmaas.service.live_context import LiveContext, app_from
from llmaas.service.move_book import MoveBook
from llmaas.service.parts import ServiceParts
from llmaas.service.waiting_contexts import WaitingContexts

_STAGED_S = 600.0
"""Seconds after which what came ahead of a context goes, if the context does not come."""
_MOST_STAGED = 4
"""Of one app and node."""
_UNSEEN = 4.0
"""As long as nothing was computed here, computing may take so many times what is guessed: one thread was 3.7 times as
slow. Whoever sends chunks learns in a second what the link takes, and would learn this too late."""
BRING_S, MOST_BRING_S, _LOOK_S = 20.0, 40.0, 0.1
"""Seconds that bringing a context into CELLS ahead of its answer may take; then it is said how far that is. A step that
runs by then would be for nothing, and on a slow machine be the first one: it may take some more, and is looked for."""


class CallTaker(Protocol):
    """A service."""

    def submit(
        self, app: AppId, context: str, spec: CallSpec, emit: Callable[[Piece], None]
    ) -> tuple[RequestId, asyncio.Future[Done]]: ...

    def hint(self, app: AppId, context: str) -> tuple[RequestId, asyncio.Future[Done]] | None: ...

    def cancel(self, request: RequestId) -> None: ...


class ArrivingContexts:
    """For one event loop."""

    def __init__(
        self,
        parts: ServiceParts,
        contexts: Contexts,
        chunks: ChunkTransfers,
        import_: Callable[..., Awaitable[ContextInfo]],
        most_tokens: int,
        interpreter: Interpreter,
    ) -> None:
        self._parts, self._contexts, self._import = parts, contexts, import_
        self._planner, self._dispatch = interpreter.planner, interpreter.dispatch
        self._import_chunks, self._take_ahead, self._cover = chunks.import_, chunks.take, chunks.cover
        self._waiting = WaitingContexts(parts, contexts, most_tokens, interpreter.dispatch)
        book = MoveBook(parts)
        self.find, self.settle = book.find, book.settle
        self.most_tokens, self.most_text = most_tokens, most_tokens * parts.engine.token_bytes
        """Of one context."""
        self.calls: CallTaker | None = None
        """Who takes the rest of answers whose contexts have come; None: answers do not go on here."""

    @property
    def vocab(self) -> str:
        return self._parts.engine.info.vocab

    # -- ahead of it

    async def stage(self, move: str, node: str, app: AppId, asked: Import) -> ContextInfo:
        """Make what a context consists of that is to come from the node, so that its chunks can come ahead of it, and
        be brought into CELLS. It is no app's, and goes by itself. Raises as ``arrive``."""
        if asked.exported.vocab != self.vocab:
            raise ModelMismatch("the model here has another tokenizer than the context's")
        waits = app_from(app, node)
        for info in self._contexts.infos(waits)[_MOST_STAGED - 1 :]:
            await self._contexts.delete(self._contexts.find(waits, info.id))
        return await self._import(waits, asked.exported, name=f"move-{move}", adapter=asked.adapter, ttl=_STAGED_S)

    async def take_staged(
        self, context: ContextId, root: bytes, kv: bytes, pieces: tuple[ChunkPiece, ...], *, computes: bool = False
    ) -> ImportedChunks:
        """``computes``: let what is missing in front of them be computed meanwhile, when nobody else wants anything."""
        live = self._contexts.find(None, context)
        taken = await self._take_ahead(live, ImportChunks(live.id, root, kv, pieces, trusted=True))
        if computes and not live.deleted and not self._hints_of(live):
            # Again, as of what it has taken: a call that ended since has said that nothing comes any more.
            self._dispatch(ChunksCame(live.id, ()))
            self._hint(live)
        return taken

    def n_begun(self, context: ContextId) -> int:
        """How many of its first tokens are in CELLS, or will be once what is computed of it now has been."""
        live = self._contexts.find(None, context)
        return max(self._contexts.n_in_cells(live), self._planner.n_begun(live.id))

    def compute_s(self, n_tokens: int) -> float:
        """Seconds to compute a context of so many tokens, if nobody else wants anything."""
        seconds = self._planner.prefill_s(n_tokens)
        return seconds if self._planner.learned_costs.compute is not None else _UNSEEN * seconds

    async def bring(self, context: ContextId, tokens: bytes) -> int:
        """Let what waits go on with these tokens, and bring it into CELLS as soon as nobody else wants anything. How
        many of its tokens are there then. Raises UnknownContext, BadRequest, ContextTooLong, QuotaExceeded."""
        live = self._contexts.find(None, context)
        if tokens:
            self._end_hints(live)
            await self._waiting.grow(live, unpack(tokens))
        if (hint := next(iter(self._hints_of(live)), None) or self._hint(live)) is not None:
            request, reply = hint
            await asyncio.wait([reply], timeout=BRING_S)
            await self._step_ends(live, reply)
            self.cancel(request)
            await asyncio.wait([reply])
        return self._contexts.n_in_cells(live)

    def _hint(self, live: LiveContext) -> tuple[RequestId, asyncio.Future[Done]] | None:
        return self.calls.hint(live.row.app, live.id) if self.calls is not None else None

    def _hints_of(self, live: LiveContext) -> list[tuple[RequestId, asyncio.Future[Done]]]:
        """Those that bring the context into CELLS already."""
        calls = self._parts.calls.values()
        return [(call.id, call.control.reply) for call in calls if call.live is live and call.hint]

    async def _step_ends(self, live: LiveContext, reply: asyncio.Future[Done]) -> None:
        """Return when a step has brought some of the context into CELLS, the call has ended, or none does in time."""
        before = self._contexts.n_in_cells(live)
        for _ in range(round((MOST_BRING_S - BRING_S) / _LOOK_S)):
            if reply.done() or self._contexts.n_in_cells(live) != before:
                return
            await asyncio.wait([reply], timeout=_LOOK_S)

    async def unstage(self, context: ContextId) -> None:
        """The context has come, or does not: what waited for it is not needed any more."""
        with suppress(UnknownContext):
            live = self._contexts.find(None, context)
            self._end_hints(live)
            await self._contexts.delete(live)

    def _end_hints(self, live: LiveContext) -> None:
        for request, _ in self._hints_of(live):
            self.cancel(request)

    # -- it comes

    async def arrive(
        self, move: str, node: str, app: AppId, asked: Import, turns: Sequence[MovedTurn] = ()
    ) -> ContextInfo:
        """Make the context that comes by this move from the node with that fingerprint: whole, or not at all. Raises
        what ``import_context`` does, and ModelMismatch."""
        if asked.exported.vocab != self.vocab:
            raise ModelMismatch(
                "the model here has another tokenizer than the context's",
                hint="Take it over by its text: 'llmaas ctx export' and 'llmaas ctx import'.",
            )
        more = {"name": asked.name, "adapter": asked.adapter, "ttl": asked.ttl, "turns": turns}
        info = await self._import(app, asked.exported, came_by=(move, node), **more)
        await self._cover(self._contexts.find(None, info.id))
        return info

    async def arrive_staged(
        self, move: str, node: str, app: AppId, asked: Import, context: ContextId, turns: Sequence[MovedTurn] = ()
    ) -> ContextInfo:
        """As ``arrive``, of a context of which this waits: it is what waited, with what is in CELLS of it."""
        live = self._contexts.find(None, context)
        self._end_hints(live)
        return await self._waiting.adopt(live, app, asked, MoveRow(move, node, live.id, MoveState.ARRIVED), turns)

    def refuse(self, app: AppId, asked: Import, kv: bytes) -> bool:
        """Raises what would keep such a context from being made, as far as that is known before its tokens are. Whether
        chunks of the model and adapter ``kv`` can be used."""
        self._contexts.new(app, asked.exported.name, asked.adapter, asked.ttl)
        usable = kv == self._parts.adapters.root(AppId(""), asked.adapter)
        if asked.adapter and not usable:
            raise AdapterMismatch(f"the adapter {asked.adapter!r} is another one here, or the model is")
        return usable

    # -- it has come

    async def take_chunks(self, row: MoveRow, root: bytes, kv: bytes, pieces: tuple[ChunkPiece, ...]) -> ImportedChunks:
        """Chunks of a context that came by this move, for it and others that came from there. Raises UnknownContext."""
        live = self._contexts.find(None, row.context)
        return await self._import_chunks(live.row.app, ImportChunks(live.id, root, kv, pieces, trusted=True))

    def answer(
        self, row: MoveRow, spec: CallSpec, emit: Callable[[Piece], None]
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        """Go on with the answer of a context that came by this move. Raises LlmaasError."""
        live = self._contexts.find(None, row.context)
        if self.calls is None:
            raise BadRequest("answers do not go on here")
        if spec.n_answered > live.n_tokens:
            raise BadRequest(f"field 'n_answered': the context has only {live.n_tokens} tokens")
        return self.calls.submit(live.row.app, live.id, spec, emit)

    def cancel(self, request: RequestId) -> None:
        if self.calls is not None:
            self.calls.cancel(request)

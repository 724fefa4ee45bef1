"""Contexts that go from one model or daemon to another: what is handed out, and what is taken in.

Law: nothing is taken in that this model could not have made: token ids are in its vocabulary, or are made anew from the
text. A context that is handed out stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmaas.api.transfer_records import MovedTurn
from llmaas.kvchunks.store.move_rows import MoveRow, MoveState
from llmaas.records import AppId, ContextInfo, ExportedContext
from llmaas.service.arrivals import ArrivingContexts, CallTaker
from llmaas.service.chunk_transfers import ChunkTransfers
from llmaas.service.contexts import Contexts
from llmaas.service.departures import DepartureHall, Mover
from llmaas.service.interpreter import Interpreter
from llmaas.service.keyed_turns import arrived_turns
from llmaas.service.live_context import LiveContext
from llmaas.service.mark_teller import MarkTeller
from llmaas.service.parts import ServiceParts
from llmaas.service.refusals import refuse_if_deleted, refuse_if_too_long, refuse_without_text
from llmaas.service.retokenize import retokenized
from llmaas.service.span_records import exported_spans, imported_spans, refuse_unknown_tokens


class Transfers:
    """For one event loop. ``ctx_limit``: tokens of the longest context."""

    def __init__(self, parts: ServiceParts, interpreter: Interpreter, contexts: Contexts, ctx_limit: int) -> None:
        self._parts, self._contexts, self._ctx_limit = parts, contexts, ctx_limit
        chunks = ChunkTransfers(parts, interpreter, contexts)
        self.export_chunks, self.import_chunks = chunks.export, chunks.import_
        self.departures = DepartureHall(parts, contexts, chunks, self._exported, interpreter.dispatch)
        self.arrivals = ArrivingContexts(parts, contexts, chunks, self.import_context, ctx_limit, interpreter)
        self.move = self.departures.move
        self.marks = MarkTeller(parts, interpreter, ctx_limit)

    def begin_moves(self, mover: Mover, calls: CallTaker) -> None:
        """Contexts can go to other nodes from now on, and answers go on there, or here."""
        self.departures.mover, self.departures.calls, self.arrivals.calls = mover, calls, calls

    async def export_context(self, app: AppId, context: str) -> ExportedContext:
        """Raises UnknownContext, ContextDamaged."""
        live = self._contexts.find_sound(app, context)
        async with live.lock:
            refuse_if_deleted(live)
            return await self._exported(live)

    async def _exported(self, live: LiveContext) -> ExportedContext:
        """The caller holds the lock."""
        row = live.row
        spans = await self._parts.store_thread.run(row.app, self._parts.store.spans, live.id)
        return ExportedContext(row.name, row.model, row.vocab, exported_spans(spans))

    async def import_context(
        self,
        app: AppId,
        exported: ExportedContext,
        *,
        name: str | None = None,
        adapter: str = "",
        ttl: float | None = None,
        came_by: tuple[str, str] | None = None,
        turns: Sequence[MovedTurn] = (),
    ) -> ContextInfo:
        """See ``api.transfer_operations.import_context``. ``came_by``: the move, and the node that it comes from;
        ``turns``: what it remembers by idempotency keys."""
        contexts, info = self._contexts, self._parts.engine.info
        refuse_without_text(info)
        origin = came_by[1] if came_by is not None else ""
        live = contexts.new(app, exported.name if name is None else name, adapter, ttl, origin)
        spans = imported_spans(exported.spans)
        if exported.vocab == info.vocab:
            refuse_unknown_tokens(spans, info.n_vocab)
        else:
            before = replace(live.row, model=exported.model, vocab=exported.vocab)
            limit, engine = self._ctx_limit, self._parts.engine
            spans = await self._parts.text_threads.run(live, None, retokenized, engine, before, spans, limit)
        n_tokens = sum(len(span.tokens) for span in spans)
        refuse_if_too_long(n_tokens, self._ctx_limit)
        move = MoveRow(*came_by, live.id, MoveState.ARRIVED) if came_by is not None else None
        return await contexts.create_with(live, spans, move, arrived_turns(turns, live.row.id, n_tokens))

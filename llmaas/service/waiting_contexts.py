"""Contexts that wait here while they are answered at the node that they are to come from.

Law: one is no app's, and goes by itself. It becomes an app's in one durable transaction, whole or not at all; its id,
its chunks and what of it is in CELLS stay, so that its answer goes on at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from llmaas.api.transfer_messages import Import
from llmaas.api.transfer_records import MovedTurn
from llmaas.kvchunks.store.move_rows import MoveRow
from llmaas.kvchunks.store.store import ContextRow, Span
from llmaas.kvchunks.store.tokens import n_common
from llmaas.planner.events import Event
from llmaas.records import AppId, ContextInfo
from llmaas.service.context_rows import ContextRows
from llmaas.service.contexts import Contexts
from llmaas.service.keyed_turns import arrived_turns
from llmaas.service.live_context import LiveContext, publish_kv
from llmaas.service.parts import ServiceParts
from llmaas.service.quotas import span_size
from llmaas.service.refusals import refuse_if_deleted, refuse_if_too_long
from llmaas.service.span_records import imported_spans, refuse_unknown_tokens


class WaitingContexts:
    """``ctx_limit``: tokens of the longest context. For one event loop."""

    def __init__(
        self, parts: ServiceParts, contexts: Contexts, ctx_limit: int, dispatch: Callable[[Event], None]
    ) -> None:
        self._parts, self._contexts, self._dispatch = parts, contexts, dispatch
        self._rows, self._ctx_limit = ContextRows(parts), ctx_limit

    async def grow(self, live: LiveContext, tokens: array[int]) -> None:
        """Tokens that were drawn where it is answered. Raises UnknownContext, BadRequest, ContextTooLong,
        QuotaExceeded."""
        parts, spans = self._parts, [Span(tuple(tokens))]
        refuse_unknown_tokens(spans, parts.engine.info.n_vocab)
        async with live.lock:
            refuse_if_deleted(live)
            refuse_if_too_long(len(live.tokens) + len(tokens), self._ctx_limit)
            parts.quotas.refuse_text(live.row.app, span_size(spans))
            append = partial(parts.store.append, live.id, spans, expect=len(live.tokens), now=parts.clock.wall())
            await parts.store_thread.run_to_end(live.row.app, append)
            live.add_spans(spans)
            live.last_used, live.used = parts.clock.wall(), parts.clock.now()
            parts.quotas.count(live)

    async def adopt(
        self, live: LiveContext, app: AppId, asked: Import, move: MoveRow, turns: Sequence[MovedTurn] = ()
    ) -> ContextInfo:
        """It has come by this move, and is the app's from now on. Raises UnknownContext, ContextExists, BadRequest,
        ContextTooLong, QuotaExceeded."""
        parts, spans = self._parts, imported_spans(asked.exported.spans)
        size = span_size(spans)
        refuse_unknown_tokens(spans, parts.engine.info.n_vocab)
        refuse_if_too_long(size.tokens, self._ctx_limit)
        name = asked.exported.name if asked.name is None else asked.name
        row = replace(self._rows.named(app, name, live.adapter, asked.ttl), id=live.id, origin=move.node)
        async with live.lock:
            refuse_if_deleted(live)
            await self._contexts.anonymous.fit_context(app)
            with parts.quotas.new_context(app):
                await self._contexts.anonymous.fit_text(app, size)
                parts.quotas.refuse_text(app, size)
                kept = arrived_turns(turns, live.id, size.tokens)
                await parts.store_thread.run_to_end(app, parts.store.adopt_context, row, spans, move, kept)
                self._become(live, replace(row, n_tokens=size.tokens), spans)
        return self._contexts.info(live)

    def _become(self, live: LiveContext, row: ContextRow, spans: list[Span]) -> None:
        parts, contexts, before = self._parts, self._contexts, live.tokens
        parts.directory.remove(live)
        parts.histories.forget(live)
        parts.quotas.forget(live)
        contexts.expiry.forget(live)
        live.row = row
        live.replace_spans(spans)
        live.used, live.last_used = parts.clock.now(), parts.clock.wall()
        parts.directory.add(live)
        parts.quotas.count(live)
        parts.histories.changed(live)
        contexts.expiry.watch(live)
        publish_kv(live, min(live.n_kv, n_common(before, live.tokens)), self._dispatch)

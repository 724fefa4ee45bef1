"""What apps do with their contexts, apart from calls: create, fork, truncate, delete, list.

Law: a change is in the store before it is in memory, and in both before the reply leaves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llmaas.calls import Turn
from llmaas.errors import BadRequest, Busy, ContextDamaged, ContextExists, ModelMismatch, QuotaExceeded
from llmaas.kvchunks.store.move_rows import MoveRow, MoveState
from llmaas.kvchunks.store.store import ContextRow, ContextSummary, KeyedTurn, ModelName, Span
from llmaas.planner.events import ContextClosed, ContextOpened
from llmaas.records import AppId, ContextDetail, ContextInfo, Message
from llmaas.service.anonymous import CLAIM_S, AnonymousContexts
from llmaas.service.context_rows import ContextRows
from llmaas.service.copies import HistoryChanged, copy_beginning
from llmaas.service.expiry import Expiry
from llmaas.service.history_keys import HistoryKey
from llmaas.service.interpreter import Interpreter
from llmaas.service.live_context import LiveContext, app_to_be, cover_all, key_chain, publish_kv, total_tokens
from llmaas.service.parts import ServiceParts
from llmaas.service.quotas import Size, span_size, text_size
from llmaas.service.refusals import refuse_if_deleted, refuse_if_leaving, refuse_if_oversized, refuse_if_too_long
from llmaas.service.retokenize import retokenized
from llmaas.service.stored_contexts import StoredContexts
from llmaas.service.turn_spans import turn_spans

log = logging.getLogger(__name__)


class Contexts:
    """The contexts of all apps. ``ctx_limit``: tokens of the longest one. For one event loop."""

    def __init__(
        self, parts: ServiceParts, interpreter: Interpreter, *, ctx_limit: int, anonymous_contexts: int
    ) -> None:
        self._engine, self._store, self._store_thread = parts.engine, parts.store, parts.store_thread
        self._text_threads, self._slow_thread = parts.text_threads, parts.slow_thread
        self._clock, self._adapters, self._directory = parts.clock, parts.adapters, parts.directory
        self._quotas, self._histories = parts.quotas, parts.histories
        self._planner, self._dispatch = interpreter.planner, interpreter.dispatch
        self._is_stored = interpreter.stored
        self._unclaimed, self._rows = interpreter.unclaimed, ContextRows(parts)
        self.stored = StoredContexts(parts, interpreter, partial(self._open, coldest=True))
        self._ctx_limit = ctx_limit
        self.anonymous = AnonymousContexts(parts, self.delete, anonymous_contexts)
        self.expiry = Expiry(parts, self.anonymous, self.delete)

    async def open_stored(self, stored: Sequence[ContextSummary] | None) -> None:
        """List every context of the store. ``stored``: the store's summaries, if they have been read already. Raises
        StoreFailed."""
        if stored is None:
            stored = await self._store_thread.run("", self._store.summaries)
        n_chunks = await self.stored.start(stored, self._rows)
        for move in await self._store_thread.run("", self._store.moves.all):
            if move.state is MoveState.LEAVING and self._directory.has_id(move.context):
                self._directory.by_id(move.context).leaving = move.node
        for live in self._directory:
            self.expiry.watch(live)
        name, n_contexts = self._engine.info.title, len(self._directory)
        log.info("serving %s: %d contexts, %d chunks on disk", name, n_contexts, n_chunks)

    async def create(
        self, app: AppId, name: str | None, system: str | None, adapter: str, ttl: float | None
    ) -> ContextInfo:
        """See ``Service.create``."""
        self._adapters.file(adapter)
        await self.anonymous.fit_context(app)
        with self._quotas.new_context(app):
            live = await self._create(app, self._rows.named(app, name, adapter, ttl), system)
        return replace(self.info(live), note=self._engine.info.chat_note)

    async def get_or_create(
        self, app: AppId, name: str, system: str | None, adapter: str, ttl: float | None
    ) -> ContextInfo:
        """See ``Service.create``."""
        if self._directory.has_name(app, name):
            await self.expiry.wait_if_going(self._directory.find(app, name))
        if not self._directory.has_name(app, name):
            try:
                return await self.create(app, name, system, adapter, ttl)
            except ContextExists:  # another request has made it meanwhile
                if not self._directory.has_name(app, name):
                    raise
        found = self._directory.find(app, name)
        found.claimed_until = max(found.claimed_until, self._clock.now() + CLAIM_S)  # it does not go meanwhile
        return self.info(found)

    async def create_anonymous(self, app: AppId, adapter: str) -> LiveContext:
        """An empty context without a name that an app chose."""
        async with self.anonymous.room(app):
            with self._quotas.new_context(app):
                return await self._create(app, self._rows.anonymous(app, adapter), None)

    async def _create(self, app: AppId, row: ContextRow, system: str | None) -> LiveContext:
        live = self._rows.live(row)
        turn = Turn((Message("system", system),) if system else ())
        refuse_if_oversized(turn, self._ctx_limit, self._engine.token_bytes)
        make = partial(turn_spans, answer=False, limit=self._ctx_limit)
        spans = await self._text_threads.run(live, turn, make, self._engine, live, turn)
        refuse_if_too_long(total_tokens(spans), self._ctx_limit)
        await self._store_new(live, spans)
        return live

    async def _store_new(
        self, live: LiveContext, spans: Sequence[Span], move: MoveRow | None = None, turns: Sequence[KeyedTurn] = ()
    ) -> None:
        app = live.row.app
        await self._refuse_text(app, span_size(spans))
        await self._store_thread.run(app, self._store.create_context, live.row, spans, move, turns)
        live.add_spans(spans)
        live.used = self._clock.now()
        self._add(live)

    def new(self, app: AppId, name: str, adapter: str, ttl: float | None = None, origin: str = "") -> LiveContext:
        """A context for ``create_with``. Raises ContextExists, BadRequest, UnknownAdapter."""
        self._adapters.file(adapter)
        return self._rows.live(replace(self._rows.named(app, name, adapter, ttl), origin=origin))

    async def create_with(
        self, live: LiveContext, spans: Sequence[Span], move: MoveRow | None = None, turns: Sequence[KeyedTurn] = ()
    ) -> ContextInfo:
        """Store a ``new`` context with these spans, the move that it came by, and turns that had keys. Raises
        ContextExists, QuotaExceeded, DiskFull."""
        app = live.row.app
        await self.anonymous.fit_context(app)
        with self._quotas.new_context(app):
            await self._store_new(live, spans, move, turns)
        return replace(self.info(live), note=self._engine.info.chat_note)

    async def fork(self, app: AppId, context: str, name: str | None, n_messages: int | None) -> ContextInfo:
        """See ``Service.fork``."""
        source = self.find_usable(app, context)
        await self.stored.read(source)
        if n_messages is not None:
            _n_kept(source, None, n_messages)
        async with source.lock:
            refuse_if_deleted(source)
            if self._engine.info.chunkable:
                cover_all(source, self._dispatch)
            await self.anonymous.fit_context(app)
            with self._quotas.new_context(app):
                row = self._rows.named(app, name, source.adapter)
                if n_messages is None or (n_messages == len(source.marks) and not source.has_raw_end):
                    return self.info(await self._fork(app, source, row))
                return self.info(await self._copy(source, row, n_messages, None))

    async def _fork(self, app: AppId, source: LiveContext, row: ContextRow) -> LiveContext:
        """The caller holds the lock of ``source``."""
        await self._refuse_text(app, text_size(source), source)
        await self._store_thread.run(app, self._store.fork, source.id, row)
        live = self._rows.live(row)
        live.tokens, live.marks = source.tokens[:], list(source.marks)
        if not source.row.origin:  # what another node has coded is found by contexts that came from there only
            live.root, live.keys, live.n_kv = source.root, list(source.keys), source.n_kv
            live.rekey(min(source.n_kv, len(live.tokens)))  # not what was computed of an interrupted turn
        live.used = self._clock.now()
        self._add(live)
        return live

    async def copy_anonymous(self, source: LiveContext, n_messages: int, wanted: HistoryKey) -> LiveContext:
        """A new anonymous context with the first messages of ``source``, which a call may be changing: what the store
        has of it counts. Raises HistoryChanged if those are not the messages with the key ``wanted``."""
        app = source.row.app
        async with self.anonymous.room(app, source):
            with self._quotas.new_context(app):
                return await self._copy(source, self._rows.anonymous(app, source.adapter), n_messages, wanted)

    async def _copy(
        self, source: LiveContext, row: ContextRow, n_messages: int, wanted: HistoryKey | None
    ) -> LiveContext:
        live, app = self._rows.live(row), row.app
        copy = partial(copy_beginning, self._store, source.id, live, n_messages, source.n_kv)
        found = await self._store_thread.run(app, copy)
        if wanted not in (None, found.key):
            raise HistoryChanged
        await self._refuse_text(app, text_size(live), source)
        await self._store_thread.run(app, self._store.create_context, row, found.spans)
        if self._engine.info.state is not None:
            chain = await self._store_thread.run(app, partial(key_chain, live.root, live.tokens, states=True))
            live.cover_stored(chain, self._is_stored)
        live.used = self._clock.now()
        self._add(live)
        return live

    async def split(self, live: LiveContext, n_messages: int) -> None:
        """Cut an anonymous context to its first messages, which it has in CELLS to the last token; what it held goes on
        in a new anonymous context, if there is room for one."""
        async with live.lock:
            await self.stored.read(live)
            app = live.row.app
            try:
                async with self.anonymous.room(app):
                    with self._quotas.new_context(app):
                        other = await self._fork(app, live, self._rows.anonymous(app, live.adapter))
                other.used, other.last_used = live.used, live.last_used
            except (Busy, QuotaExceeded):
                pass
            await self._truncate(live, _n_kept(live, None, n_messages), n_messages)

    async def truncate(self, app: AppId, context: str, n_tokens: int | None, n_messages: int | None) -> ContextInfo:
        """See ``Service.truncate``."""
        live = self.find_sound(app, context)
        async with live.lock:
            refuse_if_deleted(live)
            await self.stored.read(live)
            await self._truncate(live, _n_kept(live, n_tokens, n_messages), n_messages)
        return self.info(live)

    async def _truncate(self, live: LiveContext, keep: int, n_messages: int | None) -> None:
        """Keep so many tokens. The caller holds the lock."""
        app, now = live.row.app, self._clock.wall()
        if keep or n_messages:
            left = await self._store_thread.run(app, self._store.truncate, live.id, keep, now)
        else:  # a message that is held back, without tokens, goes too
            empty = partial(self._store.rewrite, live.id, (), expect=len(live.tokens), now=now)
            await self._store_thread.run(app, empty)
            left = []
        live.replace_spans(left)
        live.last_used, live.used = now, self._clock.now()
        self._quotas.count(live)
        self._histories.changed(live)
        publish_kv(live, min(live.n_kv, keep), self._dispatch)

    async def migrate(self, app: AppId | None, context: str) -> ContextInfo:
        """See ``Service.migrate``."""
        live = self.find_sound(app, context)
        async with live.lock:
            refuse_if_deleted(live)
            await self.stored.read(live)
            if not live.usable:
                await self._migrate(live)
        return self.info(live)

    async def _migrate(self, live: LiveContext) -> None:
        row, now = live.row, ModelName(self._engine.info.name, self._engine.info.vocab)
        old = await self._store_thread.run(row.app, self._store.spans, live.id)
        new = await self._text_threads.run(live, None, retokenized, self._engine, row, old, self._ctx_limit)
        refuse_if_too_long(total_tokens(new), self._ctx_limit)
        n_old, used = len(live.tokens), live.last_used
        write = partial(self._store.rewrite, live.id, new, expect=n_old, now=used, model=now)
        await self._store_thread.run(row.app, write)
        publish_kv(live, 0, self._dispatch)
        live.row = replace(row, model=now.model, vocab=now.vocab)
        live.usable = True
        live.replace_spans(new)
        self._quotas.count(live)
        self._histories.changed(live)

    async def delete(self, live: LiveContext) -> None:
        """Delete the context and the chunks that no other contains. Raises UnknownContext, Moving."""
        async with live.lock:
            refuse_if_deleted(live)
            await self.delete_held(live)

    async def delete_held(self, live: LiveContext) -> None:
        """As ``delete``; the caller holds the lock."""
        # Not on the store's thread: what forks share is encrypted anew, and turns must not wait for that.
        app = live.row.app
        shared = await self._slow_thread.run(app, self._store.encrypted_for, live.id)
        if shared:  # any other context of the app may contain some of these chunks
            await self.stored.all_known_of(app)
        new_owners = self._directory.other_owners(live, shared)
        deleted = await self._slow_thread.run(app, self._store.delete_context, live.id, new_owners)
        live.deleted = True
        self._histories.forget(live)
        self.stored.forget(live)
        self.expiry.forget(live)
        self._directory.remove(live)
        self._quotas.forget(live)
        self._unclaimed.discard(deleted)
        if live.opened:
            self._dispatch(ContextClosed(live.id, tuple(deleted)))

    def infos(self, app: AppId | None) -> list[ContextInfo]:
        """An app's contexts, or everyone's; most recently used first."""
        found = [live for live in self._directory if app is None or live.row.app == app]
        found.sort(key=lambda live: (live.used, live.last_used), reverse=True)
        return [self.info(live) for live in found]

    def infos_after(self, app: AppId | None, number: int) -> Iterator[tuple[int, ContextInfo]]:
        """See ``Service.contexts_after``."""
        for n, live in self._directory.after(number):
            if app is None or live.row.app == app:
                yield n, self.info(live)

    def show(self, app: AppId | None, context: str) -> ContextDetail:
        live = self.find_sound(app, context)
        assert live.unread is None, "``load`` comes first"
        return ContextDetail(self.info(live), tuple(live.messages))

    def load(self, app: AppId | None, context: str) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """See ``Service.load``."""
        live = self.find_sound(app, context)
        return partial(self.stored.read, live) if live.unread is not None else None

    def info(self, live: LiveContext) -> ContextInfo:
        cells, pool, disk, none = self._planner.tiers(live.id, live.n_tokens) if live.opened else (0, 0, 0, 0)
        row = live.row
        return ContextInfo(
            id=row.id,
            app=row.app,
            name=row.name,
            n_tokens=live.n_tokens,
            n_messages=live.n_messages,
            created=row.created,
            last_used=live.last_used,
            tiers=(cells, pool, disk, none + max(0, live.n_tokens - live.n_kv)),
            usable=live.usable and not live.damage,
            adapter=live.adapter,
            anonymous=live.anonymous,
            ttl=row.ttl,
        )

    def n_in_cells(self, live: LiveContext) -> int:
        """How many of its first tokens are in CELLS."""
        return self._planner.tiers(live.id)[0] if live.opened and not live.deleted else 0

    def find(self, app: AppId | None, context: str) -> LiveContext:
        """See ``Directory.find``."""
        return self._directory.find(app, context)

    def find_usable(self, app: AppId, context: str) -> LiveContext:
        """Raises UnknownContext, ContextDamaged, ModelMismatch."""
        live = self.find_sound(app, context)
        if not live.usable:
            raise ModelMismatch(f"context {live.row.name!r} was made with model {live.row.model!r}")
        return live

    def find_sound(self, app: AppId | None, context: str) -> LiveContext:
        """Raises UnknownContext, ContextDamaged, Moving."""
        live = self._directory.find(app, context)
        if live.damage:
            raise ContextDamaged(live.damage)
        refuse_if_leaving(live)
        return live

    def _add(self, live: LiveContext) -> None:
        """A context was made."""
        self._directory.add(live)
        self._quotas.count(live)
        self._histories.changed(live)
        self._open(live)
        self.expiry.watch(live)

    def _open(self, live: LiveContext, *, coldest: bool = False) -> None:
        """Let the planner know the context."""
        live.opened = True
        idle = max(0.0, self._clock.wall() - live.last_used)
        app = app_to_be(live.row.app)
        self._dispatch(ContextOpened(live.id, app, tuple(live.keys), live.n_kv, idle, coldest=coldest))

    async def _refuse_text(self, app: AppId, more: Size, keep: LiveContext | None = None) -> None:
        await self.anonymous.fit_text(app, more, keep)
        self._quotas.refuse_text(app, more)


def _n_kept(live: LiveContext, n_tokens: int | None, n_messages: int | None) -> int:
    """How many tokens a truncation keeps. Raises BadRequest."""
    if (n_tokens is None) == (n_messages is None):
        raise BadRequest("give n_tokens or n_messages, one of them")
    if n_messages is not None:
        if not 0 <= n_messages <= len(live.marks):
            raise BadRequest(f"the context has {len(live.marks)} messages, not {n_messages}")
        return live.marks[n_messages - 1].end if n_messages else 0
    assert n_tokens is not None
    if not 0 <= n_tokens <= len(live.tokens):
        raise BadRequest(f"the context has {len(live.tokens)} tokens, not {n_tokens}")
    return n_tokens

"""The contexts that the store held at the start: listed at once, looked at in the background, read when they are used.

Law: nothing of a context is used before its rows have been compared with their checksums. A context that is damaged is
said when it is looked at, and its calls fail; the others are not affected.

A start reads one row for each context. Its tokens and messages stay in the store until somebody wants them, so that
thousands of contexts take neither seconds nor memory. What a start must find out from them (what is damaged, which
contexts contain the chunks on DISK, and which hold the beginning of a conversation that is looked for) is found out
afterwards, the most recently used contexts first; for so many tokens as take some 0.2 s, before the start ends. A
context that is used meanwhile is read at once, and those of an app that looks for a conversation are looked at first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from llmaas.errors import ContextDamaged, MachineError, ShuttingDown
from llmaas.kvchunks.store.store import ContextSummary
from llmaas.planner.events import ContextChanged
from llmaas.records import AppId
from llmaas.service import stored_reads
from llmaas.service.context_rows import ContextRows
from llmaas.service.interpreter import Interpreter
from llmaas.service.live_context import LiveContext, Unread
from llmaas.service.parts import ServiceParts
from llmaas.service.quotas import listed_bytes
from llmaas.service.stored_reads import Look

log = logging.getLogger(__name__)

_LONGEST_NAME = 256
"""Characters of a name that requests can give. A store may hold longer ones, from before names were bounded: their
contexts are known by their ids."""
AT_START = 400_000
"""Tokens that are looked at before the start ends."""
_BATCH_TOKENS = 32_768
"""Tokens that are looked at in one go, some 10 ms; then others have their turn."""
BATCH = 64
"""Contexts of one go."""


class StoredContexts:
    """Reads contexts of the store. ``open``: the planner is to know a context from now on. For one event loop."""

    def __init__(self, parts: ServiceParts, interpreter: Interpreter, open_: Callable[[LiveContext], None]) -> None:
        self._states = parts.engine.info.state is not None
        self._engine, self._store, self._clock = parts.engine, parts.store, parts.clock
        self._store_thread, self._slow_thread = parts.store_thread, parts.slow_thread
        self._directory, self._quotas, self._histories = parts.directory, parts.quotas, parts.histories
        self._unclaimed, self._dispatch = interpreter.unclaimed, interpreter.dispatch
        self._is_stored, self._open = interpreter.stored, open_
        self._new: dict[AppId, dict[LiveContext, None]] = {}
        """Contexts of which nothing is known but their rows."""
        self._one_look = asyncio.Lock()
        self._hurry = False
        self._looking: asyncio.Task[None] | None = None

    # -- the start

    async def start(self, stored: Sequence[ContextSummary], rows: ContextRows) -> int:
        """List these contexts, and look at some of them; how many chunks there are on DISK. Raises StoreFailed."""
        chunks = await self._store_thread.run("", lambda: list(self._store.chunks()))
        self._unclaimed.add((chunk.key, chunk.nbytes, chunk.meta) for chunk in chunks)
        for summary in sorted(await self._renamed(stored), key=lambda one: one.row.last_used):
            row = summary.row
            live = rows.live(row if len(row.name) <= _LONGEST_NAME else replace(row, name=row.id))
            self._list(live, summary)
        # A cold context must not make those that are opened later look colder: the warmest first.
        batches = _batches(sorted(self._directory, key=lambda live: live.last_used, reverse=True))
        n_tokens = 0
        for batch in batches:
            await self._look_at(batch)
            n_tokens += sum(live.n_tokens for live in batch)
            if n_tokens > AT_START:
                self._looking = asyncio.get_running_loop().create_task(self._look_at_rest(batches))
                return len(chunks)
        self._drop_rest()
        return len(chunks)

    async def _renamed(self, rows: Sequence[ContextSummary]) -> Sequence[ContextSummary]:
        """The contexts, where those that name the model's tokenizer as former versions did name it as this one does.

        The store is changed at once: the former name is that of this very file, and does not outlive its repair.
        """
        former, vocab = self._engine.info.former_vocab, self._engine.info.vocab
        if not any(one.row.vocab == former for one in rows):
            return rows
        try:
            await self._store_thread.run("", self._store.rename_vocab, former, vocab)
        except MachineError as error:
            log.warning("contexts keep the former name of the tokenizer for now: %s", error.message)
        return [one._replace(row=replace(one.row, vocab=vocab)) if one.row.vocab == former else one for one in rows]

    def _list(self, live: LiveContext, summary: ContextSummary) -> None:
        live.unread = Unread(summary.row.n_tokens, summary.n_messages, listed_bytes(summary))
        self._directory.add(live)
        self._histories.changed(live)
        self._new.setdefault(live.row.app, {})[live] = None
        if summary.damage:
            self._is_damaged(live, summary.damage)
        else:
            self._quotas.count(live)

    # -- the background

    async def all_known(self) -> None:
        """Return when all contexts have been looked at. Does nothing if the start did that."""
        if self._looking is not None:
            self._hurry = True
            await asyncio.wait([self._looking])

    async def all_known_of(self, app: AppId) -> None:
        """Return when all contexts of the app have been looked at. Raises StoreFailed."""
        for batch in _batches(list(self._new.get(app, ()))):
            await self._look_at(batch)

    @property
    def idle(self) -> bool:
        """Whether all contexts have been looked at."""
        return self._looking is None or self._looking.done()

    def close(self) -> None:
        """Look at no more contexts."""
        if self._looking is not None:
            self._looking.cancel()

    def forget(self, live: LiveContext) -> None:
        """The context was deleted, or is known now."""
        mine = self._new.get(live.row.app, {})
        mine.pop(live, None)
        if not mine:
            self._new.pop(live.row.app, None)

    async def _look_at_rest(self, batches: Iterator[list[LiveContext]]) -> None:
        try:
            for batch in batches:
                begin = self._clock.now()
                await self._look_at(batch)
                if not self._hurry:  # half of the time is for others
                    await asyncio.sleep(self._clock.now() - begin)
        except ShuttingDown:
            return
        except MachineError as error:  # nothing is dropped that a context may contain
            log.error("%s; stored contexts are looked at when they are used", error.message)
            return
        self._drop_rest()

    def _drop_rest(self) -> None:
        if self._unclaimed:
            self._dispatch(self._unclaimed.rest())

    async def _look_at(self, batch: Sequence[LiveContext]) -> None:
        """Have the rows of contexts compared, and find out what is in them. Raises StoreFailed."""
        async with self._one_look:  # who wants the same contexts waits, and finds them known
            lives = [live for live in batch if self._is_new(live)]
            if not lives:
                return
            look = partial(stored_reads.look, self._store, lives, states=self._states)
            for live, found in await self._slow_thread.run("", look):
                if self._is_new(live):  # it was not deleted or used meanwhile
                    self._has_looked(live, found)

    def _has_looked(self, live: LiveContext, found: Look | str) -> None:
        if not isinstance(found, Look):
            self._is_damaged(live, found)
            return
        assert live.unread is not None
        self.forget(live)
        live.unread = live.unread._replace(nbytes=found.nbytes, history=found.history)
        self._quotas.count(live)
        live.cover_stored(found.chain, self._is_stored)
        if live.n_kv:
            self._open(live)

    def _is_new(self, live: LiveContext) -> bool:
        return live in self._new.get(live.row.app, ())

    # -- the first use

    async def read(self, live: LiveContext) -> None:
        """Have the context's tokens and messages in memory, and the planner know it. Raises ContextDamaged,
        StoreFailed."""
        if live.damage:
            raise ContextDamaged(live.damage)
        if live.unread is None:
            return
        try:
            reading = partial(stored_reads.read, self._store, live, states=self._states)
            found = await self._store_thread.run(live.row.app, reading)
        except ContextDamaged as error:
            if live.unread is not None:
                self._is_damaged(live, error.message)
            raise
        if live.unread is None or live.deleted:
            return  # somebody else was quicker
        self.forget(live)
        live.tokens, live.marks, live.unread = found.tokens, found.marks, None
        self._quotas.count(live)
        if not live.opened:
            live.cover_stored(found.chain, self._is_stored)
            live.cover_whole(found.chain)
            self._open(live)
        elif (more := live.cover_whole(found.chain)) is not None:
            self._dispatch(ContextChanged(live.id, *more, live.n_kv))

    def _is_damaged(self, live: LiveContext, damage: str) -> None:
        live.damage, live.unread = damage, Unread(0, 0, 0)
        self.forget(live)
        self._quotas.count(live)
        self._histories.changed(live)
        log.error("%s; its calls fail until 'llmaas doctor --repair' has run", damage)


def _batches(contexts: Iterable[LiveContext]) -> Iterator[list[LiveContext]]:
    """The contexts in their order, in lists that are not too long to read at once."""
    batch, n_tokens = list[LiveContext](), 0
    for live in contexts:
        batch.append(live)
        n_tokens += live.n_tokens
        if n_tokens >= _BATCH_TOKENS or len(batch) >= BATCH:
            yield batch
            batch, n_tokens = [], 0
    if batch:
        yield batch

"""Finds the context in which a conversation goes on that an app sends as a whole each time.

Law: a context with a name is never changed, and no context is given to two callers. What was found is compared with
what the store has before it is copied. All contexts of the app are known before it is said that none holds a
conversation, however early after a start.

Of the contexts that hold the first k of the messages, for the largest k that there is: an anonymous one that holds
nothing else goes on as it is. An anonymous one that holds one answer more, which the caller wants again or has seen
cut, is cut back, and goes on with the KV that it has in CELLS; a copy keeps that answer. Else a new one begins as one
of them does. If none holds any of them, a new one is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from llmaas.errors import ContextDamaged, UnknownContext
from llmaas.frozen import frozen
from llmaas.records import CHUNK_TOKENS, AppId, Message, Resolved
from llmaas.service.contexts import Contexts
from llmaas.service.copies import HistoryChanged
from llmaas.service.history_keys import HistoryKey
from llmaas.service.live_context import LiveContext
from llmaas.service.parts import ServiceParts

_TRIES = 4
"""Contexts that are tried as the source of a copy before an empty one is made."""


@frozen
class _History:
    """A conversation that is looked for. ``keys[k]`` is the key of its first k messages."""

    app: AppId
    adapter: str
    messages: Sequence[Message]
    keys: Sequence[HistoryKey]


class Resolver:
    """``resolve`` is ``Service.resolve``. ``end_hints`` ends what holds an app's anonymous contexts without a caller.
    For one event loop."""

    def __init__(
        self, parts: ServiceParts, contexts: Contexts, end_hints: Callable[[AppId], Coroutine[Any, Any, None]]
    ) -> None:
        self._contexts, self._anonymous, self._stored = contexts, contexts.anonymous, contexts.stored
        self._histories, self._adapters = parts.histories, parts.adapters
        self._end_hints = end_hints

    async def resolve(self, app: AppId, messages: Sequence[Message], adapter: str) -> Resolved:
        self._adapters.file(adapter)
        await self._end_hints(app)
        history = _History(app, adapter, messages, await self._histories.keys(app, adapter, messages))
        live, n_messages = await self._found(history)
        return Resolved(self._contexts.info(live), n_messages)

    async def _found(self, history: _History) -> tuple[LiveContext, int]:
        """The context, claimed, and how many of the messages it holds."""
        unfit = set[LiveContext]()
        for _ in range(_TRIES):
            await self._stored.all_known_of(history.app)
            await self._histories.refresh(history.app)
            n_held = self._histories.table.n_held(history.keys)
            if n_held and (live := self._ending(history.keys[n_held - 1])):
                if await self._is_read(self._claimed(live)):
                    return live, n_held - 1
                continue
            if n_held < 2:  # nothing but the root
                break
            if live := self._with_one_answer_more(history, n_held - 1):
                self._anonymous.claim(live)
                await self._contexts.split(live, n_held - 1)
                return self._claimed(live), n_held - 1
            found = [live for live in self._histories.table.holding(history.keys[n_held - 1]) if live not in unfit]
            if not found:
                break
            source = max(found, key=_last_use)
            try:
                copied = await self._contexts.copy_anonymous(source, n_held - 1, history.keys[n_held - 1])
            except (HistoryChanged, UnknownContext, ContextDamaged):
                unfit.add(source)
            else:
                return self._claimed(copied), n_held - 1
        return self._claimed(await self._contexts.create_anonymous(history.app, history.adapter)), 0

    def _claimed(self, live: LiveContext) -> LiveContext:
        self._anonymous.claim(live)
        return live

    async def _is_read(self, live: LiveContext) -> bool:
        """Have a context in memory that was found by its stored messages; False if it is damaged, or somebody who knew
        its id has used it meanwhile."""
        try:
            await self._stored.read(live)
        except (UnknownContext, ContextDamaged):
            return False
        return not (live.deleted or live.lock.locked() or self._histories.is_stale(live))

    def _ending(self, key: HistoryKey) -> LiveContext | None:
        """A free anonymous context that holds just this."""
        found = [live for live in self._histories.table.ending(key) if self._may_change(live)]
        return max(self._anonymous.free(found), key=_last_use, default=None)

    def _with_one_answer_more(self, history: _History, n: int) -> LiveContext | None:
        """A free anonymous context that holds the first ``n`` messages and one answer, of which the caller has seen
        something else or wants another, and whose KV up to there is in CELLS only."""
        if not n or (n < len(history.messages) and history.messages[n].role != "assistant"):
            return None
        found = [
            live
            for live in self._histories.table.holding(history.keys[n])
            if self._may_change(live) and self._has_one_answer_more(live, n)
        ]
        return max(self._anonymous.free(found), key=_last_use, default=None)

    def _has_one_answer_more(self, live: LiveContext, n: int) -> bool:
        if live.unread is not None:
            return False
        if len(live.marks) != n + 1 or live.marks[n].message.role != "assistant" or live.has_raw_end:
            return False
        whole = live.marks[n - 1].end // CHUNK_TOKENS * CHUNK_TOKENS
        return self._contexts.n_in_cells(live) > whole

    def _may_change(self, live: LiveContext) -> bool:
        return live.anonymous and not self._histories.is_stale(live)


def _last_use(live: LiveContext) -> tuple[float, float]:
    return live.used, live.last_used

"""Keeps the table of conversations up to date: what has changed is hashed when somebody asks.

Law: on the event loop; text that is long is hashed on a thread. Apps that never ask cost nothing, but for the keys of
what the store held at the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import takewhile

from llmaas.frozen import frozen
from llmaas.records import AppId, Message
from llmaas.service.history_keys import HistoryKey, PackedHistory, history_keys, history_root
from llmaas.service.history_table import NOTHING, Entry, HistoryTable
from llmaas.service.live_context import LiveContext, MessageMark
from llmaas.service.text_threads import SHORT_CHARACTERS, SHORT_MESSAGES, TextThreads

_BATCH = 32
"""Contexts that are put into the table in one turn of the event loop: some thousand messages, a few milliseconds."""


@frozen
class _Work:
    """A context whose messages after the first ``len(known)`` are to be hashed; ``known`` begins with the root."""

    live: LiveContext
    marks: tuple[MessageMark, ...]
    known: tuple[HistoryKey, ...]
    whole: bool

    @property
    def new(self) -> list[Message]:
        return [mark.message for mark in self.marks[len(self.known) - 1 :]]


class Histories:
    """``changed`` and ``forget`` say what happens to contexts; ``refresh`` before ``table`` is used."""

    def __init__(self, threads: TextThreads) -> None:
        self.table = HistoryTable()
        self._threads = threads
        self._stale: dict[AppId, dict[LiveContext, None]] = {}

    def changed(self, live: LiveContext) -> None:
        """The context is new, or its messages or its adapter have changed."""
        self._stale.setdefault(live.row.app, {})[live] = None

    def forget(self, live: LiveContext) -> None:
        """The context is or will be deleted."""
        self._drop_stale(live)
        self.table.forget(live)

    def is_stale(self, live: LiveContext) -> bool:
        return live in self._stale.get(live.row.app, {})

    async def keys(self, app: AppId, adapter: str, messages: Sequence[Message]) -> list[HistoryKey]:
        """The keys of a conversation, the root first."""
        root = history_root(app, adapter)
        if _is_short([messages]):
            return [root, *history_keys(root, messages)]
        return [root, *await self._threads.run_long(app, history_keys, root, messages)]

    async def refresh(self, app: AppId) -> None:
        """Let the table hold what the app's contexts hold, but for what changes meanwhile: that stays stale."""
        stale = list(self._stale.get(app, ()))
        for i in range(0, len(stale), _BATCH):
            if i:
                await asyncio.sleep(0)
            await self._refresh(app, stale[i : i + _BATCH])

    async def _refresh(self, app: AppId, stale: Sequence[LiveContext]) -> None:
        for live in stale:
            if live.unread is not None:
                self._put_unread(live)
        works = [_work(live, self.table.entry(live)) for live in stale if live.unread is None]
        if _is_short([work.new for work in works]):
            entries = _entries(works)
        else:
            entries = await self._threads.run_long(app, _entries, works)
        for work, entry in zip(works, entries, strict=True):
            if self.is_stale(work.live) and _is_as_it_was(work):
                self.table.put(work.live, entry)
                if not work.live.lock.locked():  # a call may change it for the time being
                    self._drop_stale(work.live)

    def _put_unread(self, live: LiveContext) -> None:
        """The context has not been used since the start: its messages are hashed already."""
        if not live.usable or live.damage:
            self.table.forget(live)
        elif (history := live.unread and live.unread.history) is not None:
            self.table.put(live, Entry((), history.unpacked(), history.whole))
        else:
            return
        self._drop_stale(live)

    def _drop_stale(self, live: LiveContext) -> None:
        mine = self._stale.get(live.row.app, {})
        mine.pop(live, None)
        if not mine:
            self._stale.pop(live.row.app, None)


def packed_history(live: LiveContext) -> PackedHistory:
    """The keys of a context whose messages are in memory. On any thread."""
    marks, whole = _leading(live)
    root = history_root(live.row.app, live.adapter)
    return PackedHistory(b"".join([root, *history_keys(root, [mark.message for mark in marks])]), whole)


def _leading(live: LiveContext) -> tuple[tuple[MessageMark, ...], bool]:
    """The messages up to the first raw text, and whether these are all that the context holds."""
    marks = tuple(takewhile(lambda mark: not mark.after_raw, live.marks))
    end = marks[-1].end if marks else 0
    return marks, end == len(live.tokens) and len(marks) == len(live.marks)


def _work(live: LiveContext, known: Entry) -> _Work:
    if not live.usable or live.damage:
        return _Work(live, (), (), False)
    marks, whole = _leading(live)
    root = history_root(live.row.app, live.adapter)
    if known.keys[:1] != (root,):
        known = NOTHING
    pairs = zip(marks, known.marks, strict=False)
    n_same = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))
    return _Work(live, marks, (root, *known.keys[1 : n_same + 1]), whole)


def _is_as_it_was(work: _Work) -> bool:
    """Whether the context holds what it held when ``work`` was made."""
    now = _work(work.live, NOTHING)
    return (now.marks, now.known[:1], now.whole) == (work.marks, work.known[:1], work.whole)


def _entries(works: Sequence[_Work]) -> list[Entry]:
    return [
        Entry(work.marks, (*work.known, *history_keys(work.known[-1], work.new)) if work.known else (), work.whole)
        for work in works
    ]


def _is_short(conversations: Sequence[Sequence[Message]]) -> bool:
    """Whether these are hashed in a fraction of a millisecond."""
    n_messages = sum(map(len, conversations))
    return (
        n_messages <= SHORT_MESSAGES
        and sum(len(message.content) for messages in conversations for message in messages) <= SHORT_CHARACTERS
    )

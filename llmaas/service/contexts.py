"""The service's contexts: their tokens, messages and chunk keys in memory, as they are on disk.

Law: ``tokens`` may run ahead of the store only while a call holds the context's lock; what a reply has acknowledged
is on disk. An app finds only its own contexts.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from array import array
from collections.abc import Callable, Container, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import takewhile

from llmaas.errors import UnknownContext
from llmaas.kvchunks.keys import chunk_keys
from llmaas.kvchunks.store.store import ContextRow, Span
from llmaas.planner.events import ContextChanged, Event
from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey, ContextId, Message

_CREATING_APPS = 4096
"""More than can have creates under way at once."""


@dataclass(frozen=True, slots=True)
class MessageMark:
    """A message and where its tokens end. ``open``: an answer without its closing text yet."""

    message: Message
    end: int
    open: bool


@dataclass(slots=True, eq=False)
class LiveContext:
    """A context in memory. ``keys`` name the chunks of its first ``n_kv`` tokens."""

    row: ContextRow
    root: bytes
    usable: bool
    adapter: str = ""
    """Name of the LoRA adapter that its KV is computed with; what ``root`` says of it is its content."""
    tokens: array[int] = field(default_factory=lambda: array("i"))
    marks: list[MessageMark] = field(default_factory=list)
    keys: list[ChunkKey] = field(default_factory=list)
    n_kv: int = 0
    last_used: float = 0.0
    """What the wall clock said."""
    used: float = -math.inf
    """The same by the monotonic clock: the order of use since the start, whatever the wall clock did."""
    deleted: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def id(self) -> ContextId:
        return self.row.id

    @property
    def messages(self) -> list[Message]:
        return [mark.message for mark in self.marks]

    @property
    def open(self) -> bool:
        return bool(self.marks) and self.marks[-1].open

    def note(self, spans: Sequence[Span], *, add_tokens: bool) -> None:
        """Take spans in; ``add_tokens`` False if their tokens are here already."""
        if add_tokens:
            for span in spans:
                self.tokens.extend(span.tokens)
        end = len(self.tokens) - total_tokens(spans)
        for span in spans:
            start, end = end, end + len(span.tokens)
            if span.role is None:
                continue
            message = Message(span.role, span.text or "")
            if self.open and span.open and self.marks[-1].end == start:  # an answer that was continued
                message = Message(span.role, self.marks.pop().message.content + message.content)
            self.marks.append(MessageMark(message, end, span.open))

    def cut(self, n_tokens: int) -> None:
        """Take back what a failed call added: tokens from ``n_tokens`` on (its messages were never noted)."""
        del self.tokens[n_tokens:]

    def reread(self, spans: Sequence[Span]) -> None:
        """Take the conversation anew from what the store has."""
        self.tokens, self.marks = array("i"), []
        self.note(spans, add_tokens=True)

    def adopt(self, stored: Container[ChunkKey]) -> None:
        """At start: let the keys cover as many tokens as ``stored`` chunks do, the partial last one included.

        That one was cut where the last call's KV ended, at any token of the last chunk: try each, longest first.
        """
        whole = len(self.tokens) // CHUNK_TOKENS * CHUNK_TOKENS
        self.rekey(whole)
        for n in range(len(self.tokens), whole, -1):
            if chunk_keys(self.root, self.tokens[:n], known=self.keys)[-1] in stored:
                self.rekey(n)
                return

    def shared(self, stored: Callable[[ChunkKey], bool]) -> int:
        """How many leading tokens chunks cover, with those that other contexts of the app have stored already.

        Two contexts that begin alike (a system prompt, a document) have the same keys there.
        """
        first, whole = self.n_kv // CHUNK_TOKENS, len(self.tokens) // CHUNK_TOKENS
        keys = chunk_keys(self.root, self.tokens[: whole * CHUNK_TOKENS], known=self.keys[:first])
        n = first + sum(1 for _ in takewhile(stored, keys[first:]))
        return max(self.n_kv, n * CHUNK_TOKENS)

    def rekey(self, n_kv: int) -> tuple[int, tuple[ChunkKey, ...]]:
        """Let the keys cover the first ``n_kv`` tokens: (first index that may have changed, keys from there)."""
        first = min(self.n_kv, n_kv) // CHUNK_TOKENS
        self.keys = chunk_keys(self.root, self.tokens[:n_kv], known=self.keys[:first])
        self.n_kv = n_kv
        return first, tuple(self.keys[first:])


class Directory:
    """All contexts, by id and by (app, name)."""

    def __init__(self) -> None:
        self._by_id: dict[ContextId, LiveContext] = {}
        self._by_name: dict[tuple[AppId, str], LiveContext] = {}
        self._last_fresh: dict[AppId, int] = {}
        """Of the apps that asked last, that one at the end."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[LiveContext]:
        return iter(self._by_id.values())

    def add(self, live: LiveContext) -> None:
        self._by_id[live.id] = live
        self._by_name[live.row.app, live.row.name] = live

    def remove(self, live: LiveContext) -> None:
        del self._by_id[live.id]
        del self._by_name[live.row.app, live.row.name]

    def heirs(self, live: LiveContext, keys: AbstractSet[ChunkKey]) -> dict[ChunkKey, ContextId]:
        """For each of ``keys`` that other contexts of the app have, one of those."""
        found = dict[ChunkKey, ContextId]()
        for other in self._by_id.values():
            if other is not live and other.row.app == live.row.app:
                found.update((key, other.id) for key in other.keys if key in keys)
        return found

    def by_id(self, context: ContextId) -> LiveContext:
        return self._by_id[context]

    def find(self, app: AppId | None, ref: str) -> LiveContext:
        """By name or id. ``app`` None (the daemon's owner) finds anyone's by id. Raises UnknownContext."""
        live = self._by_name.get((app, ref)) if app is not None else None
        live = live or self._by_id.get(ContextId(ref))
        if live is None or (app is not None and live.row.app != app):
            raise UnknownContext(f"no context {ref!r}" + (f" of app {app}" if app else ""))
        return live

    def has_name(self, app: AppId, name: str) -> bool:
        return (app, name) in self._by_name

    def fresh_name(self, app: AppId) -> str:
        """A name that the app has not got and that is not given out twice, however many creates are under way."""
        n = self._last_fresh.pop(app, 0) + 1
        while self.has_name(app, f"context-{n}"):
            n += 1
        self._last_fresh[app] = n
        if len(self._last_fresh) > _CREATING_APPS:
            del self._last_fresh[next(iter(self._last_fresh))]
        return f"context-{n}"


def new_id() -> ContextId:
    return ContextId(secrets.token_hex(8))


def total_tokens(spans: Sequence[Span]) -> int:
    return sum(len(span.tokens) for span in spans)


def tell_changed(live: LiveContext, n_kv: int, dispatch: Callable[[Event], None]) -> None:
    """The context's tokens changed; the planner learns its new chunks."""
    first, keys = live.rekey(n_kv)
    dispatch(ContextChanged(live.id, first, keys, n_kv))

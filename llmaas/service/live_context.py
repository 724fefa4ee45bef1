"""A context in memory: its tokens, messages and chunk keys, as the store has them.

Law: ``tokens`` may run ahead of the store only while a call holds the context's lock; what a reply has acknowledged
is on disk.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from llmaas.frozen import frozen
from llmaas.kvchunks.keys import chunk_keys, tail_keys
from llmaas.kvchunks.store.store import ContextRow, Span
from llmaas.kvchunks.store.tokens import n_common
from llmaas.planner.events import ContextChanged, Event
from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey, ContextId, Message
from llmaas.service.history_keys import PackedHistory

ANONYMOUS = "~"
"""How names begin that apps cannot choose."""


def root_app(row: ContextRow) -> AppId:
    """The app that the root of a context's chunk keys is made of. What came from another node has a root of its own, so
    that no chunk of that node is found by any context but those that came from there."""
    return app_from(row.app, row.origin) if row.origin else row.app


def app_from(app: AppId, origin: str) -> AppId:
    """No app can have this name. What is to arrive waits under it, with the chunk keys that it will have then."""
    return AppId(f"{app}\nfrom {origin}")


def app_to_be(app: AppId) -> AppId:
    """Whose chunks those of a context are: of one that waits under ``app_from``, the app's that it will be of.

    >>> app_to_be(app_from(AppId("1000/mail"), "ab12"))
    '1000/mail'
    """
    return AppId(app.partition("\n")[0])


def anonymous_name(context: ContextId) -> str:
    """The name of an anonymous context. Its id is in it, so no name that an app chose before such names were refused
    can be one.

    >>> anonymous_name(ContextId("6f1c0e52a9b34d77"))
    '~6f1c0e52a9b34d77'
    """
    return ANONYMOUS + context


@frozen
class MessageMark:
    """A message, and its tokens: from ``start`` to ``end``. ``open``: an answer without its closing text yet."""

    message: Message
    start: int
    end: int
    open: bool
    after_raw: bool = False
    """Raw text stands before it, or what a truncation left of a message."""


class Unread(NamedTuple):
    """What is known of a context whose tokens and messages are in the store only."""

    n_tokens: int
    n_messages: int
    nbytes: int
    """What its text and tokens will take in memory: estimated, or exactly once it has been looked at."""
    history: PackedHistory | None = None
    """None until it has been looked at."""


@dataclass(slots=True, eq=False)
class LiveContext:
    """A context in memory. ``keys`` name the chunks of its first ``n_kv`` tokens.

    The event loop owns it, but for the end of ``tokens``: while a step runs, the engine's thread appends what it draws.
    """

    row: ContextRow
    root: bytes
    """Root of its chunk keys: app, model and the content of its adapter."""
    usable: bool
    """False if the context was made with another vocabulary than the model's."""
    number: int = 0
    """Its number in the directory, which no other context has had since the start."""
    damage: str = ""
    """What is wrong with it on disk; then it has no tokens, and can only be deleted. "" if nothing is."""
    adapter: str = ""
    """Name of the LoRA adapter that its KV is computed with, "" for the bare model; ``root`` holds its content."""
    unread: Unread | None = None
    """None if tokens and messages are in memory. They come there when they are first needed (``StoredContexts``)."""
    opened: bool = False
    """Whether the planner knows the context. One that was found at start it knows once that has KV, or is used."""
    tokens: array[int] = field(default_factory=lambda: array("i"))
    draft: array[int] = field(default_factory=lambda: array("i"))
    """Tokens behind ``tokens`` that the keys cover, too: what was computed of a turn that was interrupted before its
    answer began, in case it comes again. The next call takes it, or drops it."""
    marks: list[MessageMark] = field(default_factory=list)
    keys: list[ChunkKey] = field(default_factory=list)
    n_kv: int = 0
    last_used: float = 0.0
    """By the wall clock."""
    used: float = -math.inf
    """The same by the monotonic clock: the order of use since the start, whatever the wall clock did."""
    hinted: float = -math.inf
    """When the last hint of it began. By the monotonic clock."""
    claimed_until: float = -math.inf
    """Until then it is kept for a caller that was told of it and has not called yet. By the monotonic clock."""
    deleted: bool = False
    leaving: str = ""
    """Fingerprint of the node that may have the context by now: until it has said, nobody may use it here."""
    moved_to: str = ""
    """Name of the node that has it now, if it was ``deleted`` for that."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def id(self) -> ContextId:
        return self.row.id

    @property
    def anonymous(self) -> bool:
        """Whether no app chose its name: it was made for a conversation that an app sends as a whole each time."""
        return self.row.name == anonymous_name(self.row.id)

    @property
    def n_tokens(self) -> int:
        return self.unread.n_tokens if self.unread else len(self.tokens)

    @property
    def n_messages(self) -> int:
        return self.unread.n_messages if self.unread else len(self.marks)

    @property
    def messages(self) -> list[Message]:
        return [mark.message for mark in self.marks]

    @property
    def open(self) -> bool:
        """Whether the last message is an answer without its closing text."""
        return bool(self.marks) and self.marks[-1].open

    @property
    def has_raw_end(self) -> bool:
        """Whether raw text, or what a truncation left of a message, stands behind the last message."""
        return len(self.tokens) > (self.marks[-1].end if self.marks else 0)

    def add_spans(self, spans: Sequence[Span]) -> None:
        """Add the spans' tokens and messages at the end."""
        for span in spans:
            self.tokens.extend(span.tokens)
        self.add_marks(spans)

    def add_marks(self, spans: Sequence[Span]) -> None:
        """Add the messages of spans whose tokens stand at the end already."""
        end = len(self.tokens) - total_tokens(spans)
        raw = end > (self.marks[-1].end if self.marks else 0)
        for i, span in enumerate(spans):
            start, end = end, end + len(span.tokens)
            if span.role is None:
                raw = raw or not self._is_glue(spans, i, start)
                continue
            message = Message(span.role, span.text or "")
            if self.open and span.open and self.marks[-1].end == start:  # an answer that was continued
                before = self.marks.pop()
                message, start = Message(span.role, before.message.content + message.content), before.start
                raw = before.after_raw
            self.marks.append(MessageMark(message, start, end, span.open, raw))
            raw = False

    def _is_glue(self, spans: Sequence[Span], i: int, start: int) -> bool:
        """Whether a span without a role is the chat template's: it opens an answer, or closes the one before it."""
        after = spans[i + 1] if i + 1 < len(spans) else None
        if spans[i].text is not None or after is None or after.role is None:
            return not spans[i].tokens and spans[i].text is None
        return after.open or (self.open and self.marks[-1].end == start)

    def replace_spans(self, spans: Sequence[Span]) -> None:
        """Make these spans all that the context holds."""
        self.tokens, self.draft, self.marks = array("i"), array("i"), []
        self.add_spans(spans)

    def cut(self, n_tokens: int) -> None:
        """Remove tokens from ``n_tokens`` on, which a failed call added; it has added no marks."""
        del self.tokens[n_tokens:]

    def take_draft(self, base: int) -> int:
        """The context has other tokens from ``base`` on: how many leading tokens the keys may cover now."""
        draft, self.draft = self.draft, array("i")
        return min(self.n_kv, base + n_common(draft, self.tokens[base:])) if draft else self.n_kv

    def cover_stored(self, chain: KeyChain, is_stored: Callable[[ChunkKey], bool]) -> None:
        """Let the keys cover as many tokens as stored chunks do. ``chain``: that of all the context's tokens."""
        whole, tails = chain.whole, chain.tails
        if n := _up_to_stored(tails, is_stored):
            self.keys, self.n_kv = [*whole, tails[n - 1]], len(whole) * CHUNK_TOKENS + n
            return
        if chain.earlier is not None:
            self._cover_state(chain, is_stored)
            return
        n = _up_to_stored(whole, is_stored)
        self.keys, self.n_kv = list(whole[:n]), n * CHUNK_TOKENS

    def _cover_state(self, chain: KeyChain, is_stored: Callable[[ChunkKey], bool]) -> None:
        """Of sequences that cannot be cut, calls ended anywhere, and what was stored then has the key of a chunk that
        ended there."""
        for i, tails in reversed(list(enumerate(chain.earlier or ()))):
            if n := _up_to_stored(tails, is_stored):
                self.keys, self.n_kv = [*chain.whole[:i], tails[n - 1]], i * CHUNK_TOKENS + n
                return
        self.keys, self.n_kv = [], 0

    def cover_whole(self, chain: KeyChain) -> tuple[int, tuple[ChunkKey, ...]] | None:
        """At the first use: let the keys cover all full chunks, stored or not. As ``rekey``; None if they do."""
        keys = chain.full
        if self.n_kv % CHUNK_TOKENS or len(keys) <= len(self.keys):
            return None
        first = len(self.keys)
        self.keys, self.n_kv = keys, len(keys) * CHUNK_TOKENS
        return first, tuple(keys[first:])

    def n_covered(self, is_stored: Callable[[ChunkKey], bool]) -> int:
        """How many leading tokens chunks cover, with those that other contexts of the app have stored already.

        Two contexts that begin alike (a system prompt, a document) have the same keys there.
        """
        first, whole = self.n_kv // CHUNK_TOKENS, len(self.tokens) // CHUNK_TOKENS
        keys = chunk_keys(self.root, self.tokens[: whole * CHUNK_TOKENS], known=self.keys[:first])
        n = first + sum(1 for _ in takewhile(is_stored, keys[first:]))
        return max(self.n_kv, n * CHUNK_TOKENS)

    def rekey(self, n_kv: int) -> tuple[int, tuple[ChunkKey, ...]]:
        """Let the keys cover the first ``n_kv`` tokens: (first index that may have changed, keys from there)."""
        first = min(self.n_kv, n_kv) // CHUNK_TOKENS
        tokens = self.tokens + self.draft if n_kv > len(self.tokens) else self.tokens
        self.keys = chunk_keys(self.root, tokens[:n_kv], known=self.keys[:first])
        self.n_kv = n_kv
        return first, tuple(self.keys[first:])


class KeyChain(NamedTuple):
    """The keys that the chunks of a conversation have if they are stored: of the first ones, and of the last one, which
    was cut where the last call's KV ended, if it has 1, 2, ... up to all of its tokens."""

    whole: list[ChunkKey]
    tails: list[ChunkKey]
    earlier: list[list[ChunkKey]] | None = None
    """Of a model whose sequences cannot be cut, the same for each of the first chunks."""

    @property
    def full(self) -> list[ChunkKey]:
        """Of all full chunks: the last one is, if its tail has as many tokens."""
        return [*self.whole, *self.tails[CHUNK_TOKENS - 1 :]]


def key_chain(root: bytes, tokens: array[int], *, states: bool = False) -> KeyChain:
    """``states``: the model's sequences cannot be cut."""
    n = max(0, len(tokens) - 1) // CHUNK_TOKENS * CHUNK_TOKENS
    whole = chunk_keys(root, tokens[:n])
    earlier = None
    if states:
        before, starts = [root, *whole], enumerate(range(0, n, CHUNK_TOKENS))
        earlier = [tail_keys(before[i], tokens[start : start + CHUNK_TOKENS]) for i, start in starts]
    return KeyChain(whole, tail_keys(whole[-1] if whole else root, tokens[n:]), earlier)


def _up_to_stored(keys: Sequence[ChunkKey], is_stored: Callable[[ChunkKey], bool]) -> int:
    """How many of the first keys there are up to the last one whose chunk is stored."""
    return next((n for n in range(len(keys), 0, -1) if is_stored(keys[n - 1])), 0)


def total_tokens(spans: Sequence[Span]) -> int:
    return sum(len(span.tokens) for span in spans)


def publish_kv(live: LiveContext, n_kv: int, dispatch: Callable[[Event], None]) -> None:
    """Tell the planner that chunks cover the context's first ``n_kv`` tokens from now on, and which chunks."""
    first, keys = live.rekey(n_kv)
    dispatch(ContextChanged(live.id, first, keys, n_kv))


def cover_all(live: LiveContext, dispatch: Callable[[Event], None]) -> None:
    """Let the keys cover all whole chunks of the context, computed or not: a context that begins with the same tokens
    then leaves behind what it computes of them."""
    whole = len(live.tokens) // CHUNK_TOKENS * CHUNK_TOKENS
    if live.n_kv < whole:
        publish_kv(live, whole, dispatch)

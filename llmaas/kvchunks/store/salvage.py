"""Takes the conversations of a damaged index into a new one, as far as they are right or can be put right.

Law: the damaged index is only read. Of a conversation with a hole, the part before the hole is kept: the rest would
lack what it answers. Spans are taken one after the other, so memory does not grow with the conversations. What is
encrypted is taken as it is: that needs no key, which only shows names.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from llmaas.kvchunks.store.chain import Chain, RawSpan, start
from llmaas.kvchunks.store.context_rows import (
    COLUMNS,
    Copies,
    RowState,
    StoredContext,
    as_it_is,
    checksum_of,
    impossible,
    restored,
    verified,
)
from llmaas.kvchunks.store.context_writes import insert_context
from llmaas.kvchunks.store.reports import Mended, Shortened
from llmaas.kvchunks.store.sums import Value
from llmaas.kvchunks.store.table_reader import TableReader
from llmaas.kvchunks.store.text_seal import LOST_KEY, Sealing

MOST_TRIES = 1_000_000
"""How often a span is tried behind a conversation that is not its own, in all: a few seconds. Where thousands of rows
are damaged at once, the search would otherwise take hours."""
_CHECKSUMS = COLUMNS.index("chain"), COLUMNS.index("checksum")
_SPAN_COLUMNS = ("id", "context", "tokens", "role", "text", "open", "chain")


@dataclass(slots=True)
class Rescued:
    """What a new index has of a damaged one."""

    contexts: int = 0
    shortened: list[Shortened] = field(default_factory=list)
    mended: list[Mended] = field(default_factory=list)
    lost: int = 0
    """Conversations of which there is something, but not the name or owner."""
    locked: int = 0
    """Those among ``mended`` whose key was lost, so that nobody can read them."""


@dataclass(slots=True, eq=False)
class _Conversation:
    """A context on its way into the new index."""

    stored: StoredContext
    chain: Chain | None
    """None if the rows have no checksums, since they are of an older version."""
    stop_at: int | None = None
    """Without checksums: the span from which on nothing is taken."""
    n_tokens: int = 0
    value: bytes = field(init=False)
    """The last checksum in the new index."""
    _not_taken: Value = None
    """The checksum of the last span that was not taken."""

    def __post_init__(self) -> None:
        self.value = start(self.stored.row.id)

    def add(self, span: RawSpan) -> list[RawSpan]:
        """The spans to take now that ``span`` was read."""
        if self.chain is not None:
            return self.chain.add(span)
        if self.stop_at is None and not span.possible:
            self.stop_at = span.id
        return [span] if self.stop_at is None or span.id < self.stop_at else []

    def adopt(self, span: RawSpan) -> list[RawSpan]:
        """As ``add``, for a span that was filed under another context."""
        assert self.chain is not None
        self.chain.mended += 1
        return self.chain.add(span)

    def is_behind_hole(self, span: RawSpan) -> bool:
        """Whether ``span``, which was not taken, follows the one that was not taken before it."""
        before, self._not_taken = self._not_taken, span.chain
        return isinstance(before, bytes) and span.link(before) == span.chain

    def end(self) -> list[RawSpan]:
        return self.chain.end(self.stored.chain) if self.chain is not None else []

    def has_hole(self) -> bool:
        """Whether some of it is missing, as far as its row tells."""
        if self.stored.state is RowState.DAMAGED:
            return False
        in_order = self.chain is None or self.chain.value == self.stored.chain
        return self.n_tokens != self.stored.row.n_tokens or not in_order

    def what_was_done(self) -> str | None:
        """In words; None if everything was as it should be."""
        if self.stored.seal.text_key == LOST_KEY:
            return f"its key was lost: its {self.n_tokens} tokens can never be read any more"
        if self.stored.state is RowState.DAMAGED:
            return f"what is known of it besides its name was damaged; its {self.n_tokens} tokens are kept"
        done = []
        if self.stored.state is not RowState.SOUND or self.stored.rowid != self.stored.num:
            done.append("its row")
        if self.chain is not None and self.chain.mended:
            done.append(f"{self.chain.mended} of its messages")
        if done:
            return f"{' and '.join(done)} had damaged bits, which were put right; it is whole"
        return "rows that are not its own were left out; it is whole" if self.chain and self.chain.foreign else None


class ConversationSalvage:
    """One rescue, from the connection ``old`` into the new and empty index ``new``."""

    def __init__(self, old: sqlite3.Connection, new: sqlite3.Connection, sealing: Sealing) -> None:
        self._old, self._new, self._sealing = old, new, sealing
        self._conversations: dict[int, _Conversation] = {}
        self._seen = set[int]()
        """Numbers of all contexts of which there is something."""
        self._n_spans = 0
        """Spans in the new index. They are numbered anew, since a damaged number may be in use."""
        self._tries = 0
        self._last_owner: tuple[_Conversation, ...] = ()
        """The conversation that was found last: its next spans often come next."""

    def run(self) -> Rescued:
        """Raises sqlite3.DatabaseError if the old index cannot be read at all."""
        self._read_contexts()
        self._guess_models()
        self._insert_contexts()
        for id_, num, *values in TableReader(self._old, "spans", _SPAN_COLUMNS):
            self._take(num, RawSpan(id_, *values))
        found = Rescued(len(self._conversations), lost=len(self._seen - self._conversations.keys()))
        for conversation in self._conversations.values():
            self._finish(conversation, found)
        return found

    # -- contexts

    def _read_contexts(self) -> None:
        copies = Copies(self._old)
        rows = {row[0]: row for row in TableReader(self._old, "contexts", COLUMNS)}
        signed = any(row[i] is not None for row in rows.values() for i in _CHECKSUMS)
        blank = (None,) * (len(COLUMNS) - 1)
        for num in sorted(rows.keys() | copies.ids.keys()):
            row = rows.get(num, (num, *blank))
            context = verified(row, self._sealing)
            if context is None and not signed and not impossible(row[:-1]):
                context = as_it_is(row, self._sealing)
            context = context or restored(self._old, row, copies, self._sealing)
            self._seen.add(context.num)
            if context.named:
                follower = context.chain_start() if signed else None
                self._conversations.setdefault(context.num, _Conversation(context, follower))
        if not signed:
            self._find_holes()

    def _find_holes(self) -> None:
        """Without checksums: a conversation with fewer tokens than it should have ends where the table's first hole is,
        since some of its spans may be in there."""
        reader = TableReader(self._old, "spans", ("id", "context", "tokens"))
        totals = Counter[Value]()
        for _, num, tokens in reader:
            totals[num] += len(tokens) // 4 if isinstance(tokens, bytes) else 0
        for num, conversation in self._conversations.items():
            if totals[num] != conversation.stored.row.n_tokens:
                conversation.stop_at = reader.first_gap

    def _guess_models(self) -> None:
        """A context whose row is damaged gets the tokenizer that it names if others have it, too, or that of most."""
        all_of_them = [conversation.stored for conversation in self._conversations.values()]
        sound = Counter((c.row.model, c.row.vocab) for c in all_of_them if c.state is not RowState.DAMAGED)
        known = {vocab for _, vocab in sound}
        for conversation in self._conversations.values():
            row = conversation.stored.row
            if conversation.stored.state is RowState.DAMAGED and sound and row.vocab not in known:
                model, vocab = sound.most_common(1)[0][0]
                conversation.stored = replace(conversation.stored, row=replace(row, model=model, vocab=vocab))

    def _insert_contexts(self) -> None:
        for num, conversation in list(self._conversations.items()):
            stored = conversation.stored = self._with_name(conversation.stored)
            try:
                insert_context(self._new, num, replace(stored.row, n_tokens=0), conversation.value, stored.seal)
            except sqlite3.IntegrityError:  # two rows with one name
                del self._conversations[num]

    def _with_name(self, stored: StoredContext) -> StoredContext:
        """A context whose encrypted name is damaged gets another one. Without the master key that cannot be told."""
        if stored.name_opens or not self._sealing.on:
            return stored
        row = replace(stored.row, name=f"unnamed {stored.row.id}")
        seal = stored.seal._replace(name=self._sealing.seal_name(row.app, row.name))
        return replace(stored, row=row, seal=seal, name_opens=True)

    # -- spans

    def _take(self, num: Value, span: RawSpan) -> None:
        conversation = self._conversations.get(num) if isinstance(num, int) else None
        taken = conversation.add(span) if conversation is not None else []
        if conversation is not None and taken:
            self._insert(conversation, taken)
            return
        if conversation is not None and conversation.is_behind_hole(span):
            return
        if (owner := self._find_owner(span)) is not None:
            self._insert(owner, owner.adopt(span))
        elif isinstance(num, int):
            self._seen.add(num)

    def _find_owner(self, span: RawSpan) -> _Conversation | None:
        """The number of its context may be what is damaged: then it follows the last span of the one it belongs to."""
        for conversation in chain(self._last_owner, self._conversations.values()):
            if self._tries == MOST_TRIES:
                return None
            self._tries += 1
            if conversation.chain is not None and conversation.chain.is_followed_by(span):
                self._last_owner = (conversation,)
                return conversation
        return None

    def _insert(self, conversation: _Conversation, spans: Sequence[RawSpan]) -> None:
        for span in spans:
            self._n_spans += 1
            conversation.value = span.link(conversation.value)
            conversation.n_tokens += span.n_tokens(sealed=conversation.stored.sealed)
            role = span.role.decode() if isinstance(span.role, bytes) else None
            text = span.text if conversation.stored.sealed else _as_text(span.text)
            self._new.execute(
                "INSERT INTO spans (id, context, tokens, role, text, open, chain) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self._n_spans, conversation.stored.num, span.tokens, role, text, span.open, conversation.value),
            )

    def _finish(self, conversation: _Conversation, found: Rescued) -> None:
        self._insert(conversation, conversation.end())
        stored, kept = conversation.stored, conversation.n_tokens
        row = replace(stored.row, n_tokens=kept)
        self._new.execute(
            "UPDATE contexts SET n_tokens = ?, chain = ?, checksum = ? WHERE num = ?",
            (kept, conversation.value, checksum_of(stored.num, row, conversation.value, stored.seal), stored.num),
        )
        if conversation.has_hole():
            found.shortened.append(Shortened(row.name, row.app, kept, stored.row.n_tokens))
        elif (what := conversation.what_was_done()) is not None:
            found.mended.append(Mended(row.name, row.app, what))
            found.locked += stored.seal.text_key == LOST_KEY


def _as_text(raw: Value) -> Value:
    """Text in clear; bytes that are none stay bytes: they are encrypted, and what the key was is lost."""
    if not isinstance(raw, bytes):
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw

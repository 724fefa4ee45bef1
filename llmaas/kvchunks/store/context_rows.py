"""Rows of the table ``contexts``: read, verified by their checksum, and as far as possible put right.

Law: a row is right if its checksum says so. What cannot be shown to be right is never taken for it: such a context is
listed under its name, if that is known, and gives nothing else away.

The table's own indexes hold the id, app and name of every context a second time, and the spans its number of tokens. So
a value that is damaged in the row can be looked up there, and the checksum says whether it is the right one. The key
of its text is in a table of its own a second time (``key_copies``).
"""

from __future__ import annotations

import enum
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from llmaas.frozen import frozen
from llmaas.kvchunks.store.chain import RAW_SPANS, Chain, RawSpan
from llmaas.kvchunks.store.key_copies import read_key_copies
from llmaas.kvchunks.store.rows import ContextRow
from llmaas.kvchunks.store.sums import Value, row_checksum, without_flip
from llmaas.kvchunks.store.text_seal import LOST_KEY, RowSeal, Sealing, is_text_key
from llmaas.records import AppId, ContextId

_TEXTS = ("id", "app", "name", "model", "vocab", "adapter", "chain", "text_key", "checksum")
SIGNED = (
    "num",
    "id",
    "app",
    "name",
    "model",
    "vocab",
    "created",
    "last_used",
    "n_tokens",
    "adapter",
    "chain",
    "text_key",
)
"""The columns that the checksum covers, in its order. The last one is not covered if it is NULL: it is younger."""
COLUMNS = (*SIGNED, "checksum")
_KEY = SIGNED.index("text_key")


def raw_contexts(columns: Sequence[str]) -> str:
    """Query of columns of all contexts. As blobs, since damaged text need not be UTF-8."""
    read = ", ".join(f"CAST({name} AS BLOB)" if name in _TEXTS else name for name in columns)
    return f"SELECT {read} FROM contexts"


RAW_CONTEXTS = raw_contexts(COLUMNS)
"""Query of ``SIGNED`` and the checksum."""
LARGEST_NUMBER = 1 << 53
"""Of contexts, spans and keys. A larger one is damaged; behind the largest that SQLite knows it would number at random.
"""


class RowState(enum.Enum):
    SOUND = "sound"
    RECOUNTED = "recounted"
    """Right but for the number of tokens, or the last checksum of its spans, which were counted anew."""
    MENDED = "mended"
    """Damaged, and known to be right as it was put right in memory. It is still damaged on disk."""
    DAMAGED = "damaged"
    """What its values were cannot be known."""


@frozen
class StoredContext:
    """A row of ``contexts``. Whatever is on disk, ``row`` has values of the right types; ``state`` says what they are
    worth."""

    rowid: int
    """Where the row is. Differs from ``num`` if that is damaged."""
    num: int
    """What its spans refer to."""
    row: ContextRow
    chain: bytes
    """The checksum of its last span."""
    state: RowState
    seal: RowSeal
    named: bool = True
    """Whether id, app and name are known on disk."""
    name_opens: bool = True
    """Whether the name could be decrypted, if it is encrypted."""

    @property
    def whole(self) -> bool:
        """Whether the row can be worked with."""
        return self.state is not RowState.DAMAGED and self.rowid == self.num

    @property
    def sealed(self) -> bool:
        """Whether it is encrypted."""
        return self.seal.text_key is not None

    def chain_start(self, *, mend: bool = True) -> Chain:
        """To follow its spans with."""
        return Chain(self.row.id, sealed=self.sealed, mend=mend)

    def __str__(self) -> str:
        return f"context {self.row.name!r} of {self.row.app} ({self.row.id})"


def checksum_of(num: int, row: ContextRow, chain: bytes, seal: RowSeal) -> bytes:
    """The checksum of a context's row."""
    times = float(row.created), float(row.last_used)  # as SQLite returns them
    texts = row.id, row.app, seal.name, row.model, row.vocab
    return _checksum((num, *texts, *times, row.n_tokens, row.adapter, chain, seal.text_key))


def _checksum(signed: Sequence[Value]) -> bytes:
    return row_checksum(_covered(signed))


def _covered(signed: Sequence[Value]) -> Sequence[Value]:
    """What the checksum covers of the values of ``SIGNED``."""
    return signed if signed[_KEY] is not None else signed[:_KEY]


def read_contexts(
    con: sqlite3.Connection, sealing: Sealing, where: str = "", values: Sequence[object] = ()
) -> Iterator[StoredContext]:
    """The contexts that the condition ``where`` selects, whatever state they are in."""
    copies = Copies(con)
    for raw in con.execute(f"{RAW_CONTEXTS} {where}", values).fetchall():
        yield verified(raw, sealing) or restored(con, raw, copies, sealing)


def verified(raw: Sequence[Value], sealing: Sealing) -> StoredContext | None:
    """The context of a row (``RAW_CONTEXTS``) whose checksum is right; None for any other."""
    if _checksum(raw[:-1]) != raw[-1]:
        return None
    return as_it_is(raw, sealing)


def as_it_is(raw: Sequence[Value], sealing: Sealing) -> StoredContext:
    """The context of a row (``RAW_CONTEXTS``) whose values are taken for right."""
    return _stored(raw[0], raw, RowState.SOUND, sealing)


class Copies:
    """The values of ``contexts`` that its indexes hold, by number of context, read when they are asked for."""

    def __init__(self, con: sqlite3.Connection) -> None:
        self._con = con

    @cached_property
    def ids(self) -> dict[int, Value]:
        return dict(self._rows(f"SELECT num, {_BLOB % 'id'} FROM contexts INDEXED BY {_BY_ID} ORDER BY id"))

    @cached_property
    def _numbers(self) -> dict[Value, list[int]]:
        found = dict[Value, list[int]]()
        for num, id_ in self.ids.items():
            found.setdefault(id_, []).append(num)
        return found

    def named_so(self, id_: Value) -> list[int]:
        """Numbers of the contexts with that id."""
        return self._numbers.get(id_, [])

    @cached_property
    def names(self) -> dict[int, tuple[Value, Value]]:
        """App and name."""
        columns = f"num, {_BLOB % 'app'}, {_BLOB % 'name'}"
        rows = self._rows(f"SELECT {columns} FROM contexts INDEXED BY {_BY_NAME} ORDER BY app, name")
        return {num: (app, name) for num, app, name in rows}

    @cached_property
    def text_keys(self) -> dict[Value, bytes]:
        """Wrapped text keys by the id of their context."""
        return {ctx: wrapped for _, ctx, wrapped in read_key_copies(self._con)}

    @cached_property
    def orphans(self) -> list[int]:
        """Numbers of contexts that have spans and no row."""
        rows = self._rows("SELECT DISTINCT context FROM spans WHERE context NOT IN (SELECT num FROM contexts)")
        return [num for (num,) in rows if isinstance(num, int)]

    def of(self, num: int, raw: Sequence[Value]) -> tuple[Value, Value, Value]:
        """Id, app and name of a context; those of the row ``raw`` where there is no copy."""
        return (self.ids.get(num, raw[1]), *self.names.get(num, (raw[2], raw[3])))

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        """Empty if the index cannot be read."""
        try:
            return self._con.execute(query).fetchall()
        except sqlite3.DatabaseError:
            return []


_BLOB = "CAST(%s AS BLOB)"
_BY_ID, _BY_NAME = "sqlite_autoindex_contexts_1", "sqlite_autoindex_contexts_2"


def restored(con: sqlite3.Connection, raw: Sequence[Value], copies: Copies, sealing: Sealing) -> StoredContext:
    """What can be known of a row whose checksum is wrong."""
    rowid = raw[0]
    assert isinstance(rowid, int)
    for state, values in _candidates(con, raw, copies):
        if _checksum(values) == raw[-1]:
            return _stored(rowid, values, state, sealing)
    # One value is damaged, so where row and index differ it is the row.
    identity = copies.of(rowid, raw)
    named = rowid in copies.ids and rowid in copies.names and all(isinstance(v, bytes) and _text(v) for v in identity)
    key = copies.text_keys.get(identity[0], raw[_KEY])
    if not is_text_key(key):
        key = LOST_KEY if _looks_sealed(con, rowid, copies) else None
    return _stored(rowid, (rowid, *identity, *raw[4:_KEY], key), RowState.DAMAGED, sealing, named=named)


def _looks_sealed(con: sqlite3.Connection, num: int, copies: Copies) -> bool:
    """Whether the spans of a context are encrypted, whose row does not tell. Encrypted text is no text to SQLite."""
    with suppress(sqlite3.DatabaseError):
        query = "SELECT typeof(text) FROM spans WHERE context = ? AND text IS NOT NULL LIMIT 1"
        if (found := con.execute(query, (num,)).fetchone()) is not None:
            return bool(found[0] == "blob")
    return bool(copies.text_keys)  # as others are


def _candidates(
    con: sqlite3.Connection, raw: Sequence[Value], copies: Copies
) -> Iterator[tuple[RowState, Sequence[Value]]]:
    """What the row may have been, the quickest to find out first."""
    signed = tuple(raw[:-1])
    if (flipped := without_flip(_covered(signed), raw[-1])) is not None:
        yield RowState.MENDED, (*flipped, *signed[len(flipped) :])
    key = copies.text_keys.get(signed[1])
    yield RowState.MENDED, (*signed[:_KEY], key)
    with suppress(sqlite3.DatabaseError):  # its spans cannot be read
        chain = Chain(signed[1], sealed=is_text_key(signed[_KEY]), mend=False)
        for _ in follow(con, signed[0], chain):
            pass
        yield RowState.RECOUNTED, (*signed[:8], chain.n_tokens, signed[9], chain.value, signed[_KEY])
    for num in (*copies.named_so(signed[1]), *copies.orphans, signed[0]):
        assert isinstance(num, int)
        yield RowState.MENDED, (num, *copies.of(num, raw), *signed[4:])


def follow(con: sqlite3.Connection, num: object, chain: Chain, expected: Value = None) -> Iterator[RawSpan]:
    """The spans of a context that are right, in order. ``expected`` is the checksum of the last."""
    for raw in con.execute(f"{RAW_SPANS} WHERE context = ? ORDER BY id", (num,)):
        yield from chain.add(RawSpan(*raw))
    yield from chain.end(expected)


# -- values of any type, to those of a row


def _stored(
    rowid: Any, values: Sequence[Any], state: RowState, sealing: Sealing, *, named: bool = True
) -> StoredContext:
    """``values`` are those of ``SIGNED``; one that is impossible becomes "" or 0."""
    num, id_, app, name, model, vocab, created, last_used, n_tokens, adapter, chain, key = values[: len(SIGNED)]
    stored = _text(name)
    shown = sealing.open_name(stored)
    row = ContextRow(
        ContextId(_text(id_)),
        AppId(_text(app)),
        "(encrypted)" if shown is None else shown,
        _text(model),
        _text(vocab),
        _seconds(created),
        _seconds(last_used),
        n_tokens if isinstance(n_tokens, int) and n_tokens >= 0 else 0,
        _text(adapter),
    )
    last = chain if isinstance(chain, bytes) else b""
    seal = RowSeal(stored, key if is_text_key(key) else None)
    return StoredContext(rowid, num, row, last, state, seal, named, name_opens=shown is not None)


def _text(raw: Any) -> str:
    try:
        return raw.decode() if isinstance(raw, bytes) else ""
    except UnicodeDecodeError:
        return ""


def _seconds(raw: Any) -> float:
    return float(raw) if isinstance(raw, (int, float)) and math.isfinite(raw) else 0.0


def impossible(values: Iterable[Value]) -> bool:
    """Whether a row without a checksum, of an older version, holds what no version wrote. ``values``: ``SIGNED``."""
    num, id_, app, name, model, vocab, created, last_used, n_tokens, adapter, *_ = values
    texts = all(isinstance(v, bytes) and (_text(v) or not v) for v in (id_, app, name, model, vocab, adapter))
    times = all(isinstance(v, (int, float)) and math.isfinite(v) for v in (created, last_used))
    return not (
        texts and times and isinstance(n_tokens, int) and n_tokens >= 0 and id_ and app and isinstance(num, int)
    )

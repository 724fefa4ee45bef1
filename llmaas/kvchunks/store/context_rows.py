"""Rows of the table ``contexts``: read, verified by their checksum, and as far as possible put right.

Law: a row is right if its checksum says so. What cannot be shown to be right is never taken for it: such a context is
listed under its name, if that is known, and gives nothing else away.

The table's own indexes hold the id, app and name of every context a second time, and the spans its number of tokens. So
a value that is damaged in the row can be looked up there, and the checksum says whether it is the right one.
"""

from __future__ import annotations

import enum
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmaas.kvchunks.store.chain import RAW_SPANS, Chain, RawSpan
from llmaas.kvchunks.store.rows import ContextRow
from llmaas.kvchunks.store.sums import Value, row_checksum, without_flip
from llmaas.records import AppId, ContextId

_TEXTS = ("id", "app", "name", "model", "vocab", "adapter", "chain", "checksum")
SIGNED = ("num", "id", "app", "name", "model", "vocab", "created", "last_used", "n_tokens", "adapter", "chain")
"""The columns that the checksum covers, in its order."""
COLUMNS = (*SIGNED, "checksum")
_READ = ", ".join(f"CAST({name} AS BLOB)" if name in _TEXTS else name for name in COLUMNS)
RAW_CONTEXTS = f"SELECT {_READ} FROM contexts"
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


@dataclass(frozen=True, slots=True)
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
    named: bool = True
    """Whether id, app and name are known."""

    @property
    def whole(self) -> bool:
        """Whether the row can be worked with."""
        return self.state is not RowState.DAMAGED and self.rowid == self.num

    def __str__(self) -> str:
        return f"context {self.row.name!r} of {self.row.app} ({self.row.id})"


def checksum_of(num: int, row: ContextRow, chain: bytes) -> bytes:
    """The checksum of a context's row."""
    times = float(row.created), float(row.last_used)  # as SQLite returns them
    return row_checksum(
        (num, row.id, row.app, row.name, row.model, row.vocab, *times, row.n_tokens, row.adapter, chain)
    )


def read_contexts(con: sqlite3.Connection, where: str = "", values: Sequence[object] = ()) -> Iterator[StoredContext]:
    """The contexts that the condition ``where`` selects, whatever state they are in."""
    copies = Copies(con)
    for raw in con.execute(f"{RAW_CONTEXTS} {where}", values).fetchall():
        yield verified(raw) or restored(con, raw, copies)


def verified(raw: Sequence[Value]) -> StoredContext | None:
    """The context of a row (``RAW_CONTEXTS``) whose checksum is right; None for any other."""
    if row_checksum(raw[:-1]) != raw[-1]:
        return None
    return as_it_is(raw)


def as_it_is(raw: Sequence[Value]) -> StoredContext:
    """The context of a row (``RAW_CONTEXTS``) whose values are taken for right."""
    return _stored(raw[0], raw, RowState.SOUND)


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


def restored(con: sqlite3.Connection, raw: Sequence[Value], copies: Copies) -> StoredContext:
    """What can be known of a row whose checksum is wrong."""
    rowid = raw[0]
    assert isinstance(rowid, int)
    for state, values in _candidates(con, raw, copies):
        if row_checksum(values) == raw[-1]:
            return _stored(rowid, values, state)
    # One value is damaged, so where row and index differ it is the row.
    identity = copies.of(rowid, raw)
    named = rowid in copies.ids and rowid in copies.names and all(isinstance(v, bytes) and _text(v) for v in identity)
    return _stored(rowid, (rowid, *identity, *raw[4:]), RowState.DAMAGED, named=named)


def _candidates(
    con: sqlite3.Connection, raw: Sequence[Value], copies: Copies
) -> Iterator[tuple[RowState, Sequence[Value]]]:
    """What the row may have been, the quickest to find out first."""
    signed = tuple(raw[:-1])
    if (flipped := without_flip(signed, raw[-1])) is not None:
        yield RowState.MENDED, flipped
    with suppress(sqlite3.DatabaseError):  # its spans cannot be read
        chain = Chain(signed[1], mend=False)
        for _ in follow(con, signed[0], chain):
            pass
        yield RowState.RECOUNTED, (*signed[:8], chain.n_tokens, signed[9], chain.value)
    for num in (*copies.named_so(signed[1]), *copies.orphans, signed[0]):
        assert isinstance(num, int)
        yield RowState.MENDED, (num, *copies.of(num, raw), *signed[4:])


def follow(con: sqlite3.Connection, num: object, chain: Chain, expected: Value = None) -> Iterator[RawSpan]:
    """The spans of a context that are right, in order. ``expected`` is the checksum of the last."""
    for raw in con.execute(f"{RAW_SPANS} WHERE context = ? ORDER BY id", (num,)):
        yield from chain.add(RawSpan(*raw))
    yield from chain.end(expected)


# -- values of any type, to those of a row


def _stored(rowid: Any, values: Sequence[Any], state: RowState, *, named: bool = True) -> StoredContext:
    """``values`` are those of ``SIGNED``; one that is impossible becomes "" or 0."""
    num, id_, app, name, model, vocab, created, last_used, n_tokens, adapter, chain = values[: len(SIGNED)]
    row = ContextRow(
        ContextId(_text(id_)),
        AppId(_text(app)),
        _text(name),
        _text(model),
        _text(vocab),
        _seconds(created),
        _seconds(last_used),
        n_tokens if isinstance(n_tokens, int) and n_tokens >= 0 else 0,
        _text(adapter),
    )
    return StoredContext(rowid, num, row, chain if isinstance(chain, bytes) else b"", state, named)


def _text(raw: Any) -> str:
    try:
        return raw.decode() if isinstance(raw, bytes) else ""
    except UnicodeDecodeError:
        return ""


def _seconds(raw: Any) -> float:
    return float(raw) if isinstance(raw, (int, float)) and math.isfinite(raw) else 0.0


def impossible(values: Iterable[Value]) -> bool:
    """Whether a row without a checksum, of an older version, holds what no version wrote. ``values``: ``SIGNED``."""
    num, id_, app, name, model, vocab, created, last_used, n_tokens, adapter, _ = values
    texts = all(isinstance(v, bytes) and (_text(v) or not v) for v in (id_, app, name, model, vocab, adapter))
    times = all(isinstance(v, (int, float)) and math.isfinite(v) for v in (created, last_used))
    return not (
        texts and times and isinstance(n_tokens, int) and n_tokens >= 0 and id_ and app and isinstance(num, int)
    )

"""Idempotency keys: stored with their turn, remembered for the last few, gone with what they name."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from llmaas.errors import UnknownContext
from llmaas.kvchunks.store import schema
from llmaas.kvchunks.store.store import KeyedTurn, ModelName, Span, Store
from llmaas.kvchunks.store.turn_rows import KEPT_TURNS
from llmaas.records import ContextId
from tests.support.damaged_store import listening
from tests.support.store_data import NOISE, A, B, glue, row

ASKED = bytes(range(16))


def turn(key: str, n_tokens: int, result: bytes | None = b"told") -> KeyedTurn:
    return KeyedTurn(key, ASKED, 1, n_tokens, result)


def keys(store: Store, ctx: ContextId, *names: str) -> list[str]:
    return [name for name in names if store.turn(ctx, name) is not None]


def index(root: Path, sql: str, *values: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        return con.execute(sql, values).fetchall()


def test_a_key_is_stored_with_its_turn(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"))
        store.create_context(row("b"))
        store.append(A, [glue(1, 2)], expect=0, now=1.0, turn=turn("k", 2))
        with pytest.raises(OverflowError):
            store.append(A, [glue(1 << 40)], expect=2, now=1.0, turn=turn("half", 3))
    with Store(root) as store:
        assert store.turn(A, "k") == turn("k", 2)
        assert store.turn(A, "half") is None and store.turn(B, "k") is None
        assert store.check().problems == ()
        with pytest.raises(UnknownContext):
            store.turn(ContextId("c"), "k")


def test_the_last_turns_of_a_context_are_remembered(root: Path) -> None:
    names = [f"k{i}" for i in range(20)]
    with Store(root) as store:
        store.create_context(row("a"))
        store.create_context(row("b"))
        store.append(B, [glue(1)], expect=0, now=1.0, turn=turn("k0", 1))
        for i, name in enumerate(names):
            store.append(A, [glue(i)], expect=i, now=1.0, turn=turn(name, i + 1))
        assert keys(store, A, *names) == names[-KEPT_TURNS:]
        assert keys(store, B, *names) == ["k0"]
    assert index(root, "SELECT count(*) FROM turns") == [(KEPT_TURNS + 1,)]


def test_a_turn_that_is_stored_again_takes_the_place_of_the_first(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"))
        store.append(A, [glue(1)], expect=0, now=1.0, turn=turn("k", 1, None))
        store.rewrite(A, [glue(1, 2)], expect=1, now=1.0, turn=turn("k", 2))
        assert store.turn(A, "k") == turn("k", 2)
    assert index(root, "SELECT count(*) FROM turns") == [(1,)]


def test_what_comes_behind_an_interrupted_turn_ends_its_being_the_last(root: Path) -> None:
    for n, rewritten in enumerate((False, True)):
        with Store(root / str(n)) as store:
            store.create_context(row("a"))
            store.append(A, [glue(1)], expect=0, now=1.0, turn=turn("whole", 1))
            store.append(A, [glue(2)], expect=1, now=1.0, turn=turn("cut", 2, None))
            assert store.turn(A, "cut") == turn("cut", 2, None)
            if rewritten:
                store.rewrite(A, [glue(7), Span((), "system", "held back")], expect=2, now=1.0)
            else:
                store.append(A, [Span((), "system", "held back")], expect=2, now=1.0)
            left = replace(turn("cut", 1 if rewritten else 2, None), n_spans=None)
            assert store.turn(A, "cut") == left
            assert store.turn(A, "whole") == turn("whole", 1)
            assert store.check().problems == ()


def test_keys_go_with_what_they_name(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"))
        for i in range(3):
            store.append(A, [glue(i, i)], expect=2 * i, now=1.0, turn=turn(f"k{i}", 2 * i + 2))
        store.fork(A, row("b"))
        assert keys(store, B, "k0", "k1", "k2") == []
        store.truncate(A, 6, 1.0)
        assert keys(store, A, "k0", "k1", "k2") == ["k0", "k1", "k2"]
        store.truncate(A, 3, 1.0)
        assert keys(store, A, "k0", "k1", "k2") == ["k0"]
        store.rewrite(A, [glue(9)], expect=3, now=1.0, model=ModelName("new", "vocab-2"))
        assert keys(store, A, "k0") == []
        store.append(A, [glue(1)], expect=1, now=1.0, turn=turn("k", 2))
        store.delete_context(A)
        store.create_context(row("a"))
        assert keys(store, A, "k") == []
    assert index(root, "SELECT count(*) FROM turns") == [(0,)]


def test_a_damaged_key_is_put_right_or_forgotten_and_said(root: Path) -> None:
    with Store(root) as store:
        for ctx in (A, B):
            store.create_context(row(ctx))
            store.append(ctx, [glue(1)], expect=0, now=1.0, turn=turn("k", 1, b"told" * 10))
    index(root, "UPDATE turns SET result = CAST(replace(result, 'toldtoldt', 'toldTtoldt') AS BLOB) WHERE context = 1")
    index(root, "UPDATE turns SET result = CAST('u' || substr(result, 2) AS BLOB) WHERE context = 2")  # one bit
    with listening() as heard, Store(root) as store:
        assert store.turn(A, "k") is None
        assert store.turn(B, "k") == turn("k", 1, b"told" * 10)
        assert store.spans(A) == [glue(1)]
        assert [problem.kind.value for problem in store.check(repair=True).found] == ["turn", "turn"]
        assert store.check().problems == ()
    assert ["'name of a'" in line for line in heard] == [True]
    assert index(root, "SELECT count(*) FROM turns") == [(0,)]


def test_keys_come_through_a_repair_of_the_index(root: Path) -> None:
    with Store(root) as store:
        for ctx in (A, B):
            store.create_context(row(ctx), [Span((1, 2), "user", "hello"), Span((3,), "user", "again")])
            store.append(ctx, [Span((4,), "user", "x" * 40)], expect=3, now=1.0, turn=turn("k", 4))
    index(root, "UPDATE spans SET text = 'other words' WHERE id = 2")
    found = Store.repair_index(root)
    assert found is not None and [short.name for short in found.shortened] == ["name of a"]
    with Store(root) as store:
        assert keys(store, A, "k") == [], "its turn is lost"
        assert store.turn(B, "k") == turn("k", 4)
        assert store.check().problems == ()


def test_a_store_of_the_version_before_keys_remembers_them_from_now_on(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"), [Span((1, 2), "user", "hello")])
        store.put(A, [(b"x" * 16, 64, NOISE[:500])])  # type: ignore[list-item]
    index(root, "DROP TABLE turns")
    index(root, "DROP TABLE moves")
    index(root, "DROP TABLE ttls")
    index(root, "DROP TABLE text_keys")
    index(root, "ALTER TABLE contexts DROP COLUMN text_key")
    index(root, "PRAGMA user_version = 5")
    with Store(root) as store:
        assert store.spans(A) == [Span((1, 2), "user", "hello")]
        assert store.get([b"x" * 16]) == [NOISE[:500]]  # type: ignore[list-item]
        assert store.turn(A, "k") is None
        store.append(A, [glue(3)], expect=2, now=1.0, turn=turn("k", 3))
        assert store.turn(A, "k") == turn("k", 3)
        assert store.check().problems == ()
    assert index(root, "PRAGMA user_version") == [(schema.VERSION,)]

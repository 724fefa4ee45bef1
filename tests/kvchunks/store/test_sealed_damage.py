"""Encrypted rows that were damaged: keys come from their copies, and what does not open is said."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from llmaas.errors import ContextDamaged, StoreFailed
from llmaas.kvchunks.store.store import Span, Store
from llmaas.kvchunks.store.sums import row_checksum
from tests.support.damaged_store import MASTER, listening
from tests.support.store_data import A, B, glue, row

SPANS = [glue(1, 2), Span((3, 4, 5), "user", "hello there"), Span((), "user", ""), Span((6,), "assistant", "hi")]


def index(root: Path, sql: str, *values: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        return con.execute(sql, values).fetchall()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE text_keys SET wrapped = x'00' WHERE id = 'a'",
        "UPDATE text_keys SET checksum = x'00' WHERE id = 'a'",
        "UPDATE text_keys SET id = 'c' WHERE id = 'a'",
        "DELETE FROM text_keys WHERE id = 'a'",
    ],
)
def test_a_damaged_copy_of_a_key_is_noticed_by_check_and_written_anew(root: Path, sql: str) -> None:
    with Store(root, master=MASTER) as store:
        for ctx in (A, B):
            store.create_context(row(ctx), SPANS)
    index(root, sql)
    with Store(root, master=MASTER) as store:
        assert store.spans(A) == store.spans(B) == SPANS
        assert [problem.kind.value for problem in store.check(repair=True).found] == ["key"]
        assert store.check().problems == ()
    assert index(root, "SELECT id, wrapped FROM text_keys") == index(root, "SELECT id, text_key FROM contexts")


@pytest.mark.parametrize("value", ["NULL", "x''", "x'00'", "0", "zeroblob(60)"])
def test_a_key_that_is_damaged_in_its_row_is_taken_from_the_copy(root: Path, value: str) -> None:
    with Store(root, master=MASTER) as store:
        for ctx in (A, B):
            store.create_context(row(ctx), SPANS)
    index(root, f"UPDATE contexts SET text_key = {value} WHERE id = 'a'")
    with listening() as heard, Store(root, master=MASTER) as store:
        assert {context.name for context in store.contexts()} == {"name of a", "name of b"}
        assert "its row is mended" in heard[0]
        assert store.spans(A) == SPANS
    index(root, "UPDATE contexts SET model = 'something else' WHERE id = 'a'")  # then what the row was is not known
    with Store(root, master=MASTER) as store, pytest.raises(ContextDamaged):
        store.spans(A)
    found = Store.repair_index(root, master=MASTER)
    assert found is not None and [mended.name for mended in found.mended] == ["name of a"]
    with Store(root, master=MASTER) as store:
        assert store.spans(A) == store.spans(B) == SPANS
        assert store.check().problems == ()


def test_a_key_that_is_lost_with_its_copy_costs_its_conversation_alone_and_is_said(root: Path) -> None:
    with Store(root, master=MASTER) as store:
        for ctx in (A, B):
            store.create_context(row(ctx), SPANS)
    index(root, "UPDATE contexts SET text_key = NULL WHERE id = 'a'")
    index(root, "DELETE FROM text_keys WHERE id = 'a'")
    for _ in range(2):
        with Store(root, master=MASTER) as store:
            assert [context.id for context in store.contexts()] == [A, B]
            assert store.spans(B) == SPANS
            with pytest.raises(ContextDamaged, match="'name of a' of 1000/notes"):
                store.spans(A)
            with pytest.raises(ContextDamaged):
                store.tokens(A)
        if not list(root.glob("*.corrupt-*")):
            with pytest.raises(StoreFailed, match="not all that it held"):
                Store.repair_index(root, only_whole=True, master=MASTER)
        if (found := Store.repair_index(root, master=MASTER)) is not None:
            assert [mended.name for mended in found.mended] == ["name of a"]
            assert "its key was lost" in found.mended[0].what


def test_a_name_that_is_damaged_in_both_places_is_replaced_by_the_repair(root: Path) -> None:
    with Store(root, master=MASTER) as store:
        for ctx in (A, B):
            store.create_context(row(ctx), SPANS)
    index(root, "UPDATE contexts SET name = char(1) || 'AAAA' WHERE id = 'a'")
    with listening() as heard, Store(root, master=MASTER) as store:
        assert [context.id for context in store.contexts()] == [B]
    assert "lost its name" in heard[-1]
    Store.repair_index(root, master=MASTER)
    with Store(root, master=MASTER) as store:
        assert {context.name for context in store.contexts()} == {"unnamed a", "name of b"}
        assert store.spans(A) == SPANS


def test_what_was_moved_to_another_context_does_not_open_there(root: Path) -> None:
    """Whoever can write to the index can write checksums, too."""
    with Store(root, master=MASTER) as store:
        for ctx in (A, B):
            store.create_context(row(ctx), [Span((1, 2), "user", f"of {ctx}")])
    ((tokens, text),) = index(root, "SELECT tokens, text FROM spans WHERE context = 2")
    before = row_checksum(("a",))
    chain = row_checksum((before, tokens, "user", text, 0))  # type: ignore[arg-type]
    index(root, "UPDATE spans SET tokens = ?, text = ?, chain = ? WHERE context = 1", tokens, text, chain)
    columns = "num, id, app, name, model, vocab, created, last_used, n_tokens, adapter"
    (values,) = index(root, f"SELECT {columns}, text_key FROM contexts WHERE num = 1")
    checksum = row_checksum((*values[:-1], chain, values[-1]))  # type: ignore[arg-type]
    index(root, "UPDATE contexts SET chain = ?, checksum = ? WHERE num = 1", chain, checksum)
    with Store(root, master=MASTER) as store:
        assert store.check().problems == ()
        for use in (store.spans, store.tokens, lambda ctx: store.fork(ctx, row("c"))):
            with pytest.raises(ContextDamaged, match="does not open with the context's key"):
                use(A)

"""Stores of versions without checksums: what is in them gets some, whatever it is."""

from __future__ import annotations

import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from llmaas.errors import ContextDamaged
from llmaas.kvchunks.store import schema
from llmaas.kvchunks.store.store import AdapterRow, Span, Store
from llmaas.kvchunks.store.tokens import pack
from llmaas.records import ContextId
from tests.support.damaged_store import listening
from tests.support.store_data import NOISE, A, B, glue, row

SPANS = [glue(1, 2), Span((3, 4, 5), "user", "hello there"), Span((6,), "assistant", "hi", open=True)]


def fill_version_4(root: Path, spans: list[Span] = SPANS) -> None:
    """Contexts a and b, and an adapter."""
    for folder in (root, root / "payload"):
        folder.mkdir(mode=0o700)
    (root / "index.sqlite").touch(0o600)
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        con.execute("PRAGMA journal_mode = WAL")
        con.isolation_level = None
        for step in range(4):
            schema.migrate(con, step)
        con.execute("BEGIN")
        for num, ctx in enumerate((row(A), row(B)), 1):
            total = sum(len(span.tokens) for span in spans)
            con.execute(
                "INSERT INTO contexts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'red')",
                (num, ctx.id, ctx.app, ctx.name, ctx.model, ctx.vocab, ctx.created, ctx.last_used, total),
            )
            con.executemany(
                "INSERT INTO spans (context, tokens, role, text, open) VALUES (?, ?, ?, ?, ?)",
                [(num, pack(span.tokens), span.role, span.text, span.open) for span in spans],
            )
        con.execute("INSERT INTO adapters VALUES ('red', '/red.gguf', 'f1')")
        con.execute("COMMIT")


def change(root: Path, sql: str) -> None:
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        con.execute("PRAGMA ignore_check_constraints = ON")
        assert con.execute(sql).rowcount == 1


def test_what_was_there_is_taken_over_and_protected_from_then_on(root: Path) -> None:
    fill_version_4(root)
    with listening() as heard, Store(root) as store:
        assert store.spans(A) == store.spans(B) == SPANS
        assert store.adapters.all() == [AdapterRow("red", "/red.gguf", "f1")]
        assert store.append(A, [glue(7)], expect=6, now=11.0) == 7
        assert store.check().problems == ()
    assert heard == []
    change(root, "UPDATE spans SET text = 'good bye' WHERE id = 2")
    with Store(root) as store:
        with pytest.raises(ContextDamaged, match="2 of 7 tokens"):
            store.spans(A)
        assert store.spans(B) == SPANS


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("UPDATE contexts SET n_tokens = 9 WHERE num = 1", 6),
        ("UPDATE contexts SET n_tokens = -1 WHERE num = 1", 6),
        ("UPDATE contexts SET created = 'then' WHERE num = 1", 6),
        ("UPDATE contexts SET model = CAST(x'ff80' AS TEXT) WHERE num = 1", 6),
        ("UPDATE spans SET tokens = x'010203' WHERE id = 2", 2),
        ("UPDATE spans SET tokens = 7.5 WHERE id = 2", 2),
        ("UPDATE spans SET text = CAST(x'ff80' AS TEXT) WHERE id = 2", 2),
        ("UPDATE spans SET role = x'ff' WHERE id = 3", 5),
        ("UPDATE spans SET open = 9 WHERE id = 1", 0),
        ("DELETE FROM spans WHERE id = 2", 3),
    ],
)
def test_a_value_that_no_version_wrote_costs_its_context_only(root: Path, sql: str, kept: int) -> None:
    fill_version_4(root)
    change(root, sql)
    with listening() as heard, Store(root) as store:
        assert [context.id for context in store.contexts()] == [A, B]
        assert store.spans(B) == SPANS
        with pytest.raises(ContextDamaged, match="'name of a' of 1000/notes"):
            store.spans(A)
    assert "'name of a'" in heard[0]
    found = Store.repair_index(root)
    assert found is not None and (found.contexts, found.lost) == (2, 0)
    assert [told.name for told in (*found.shortened, *found.mended)] == ["name of a"]
    with Store(root) as store:
        assert len(store.tokens(A)) == kept
        assert store.spans(B) == SPANS
        assert store.check().problems == ()


def test_a_damaged_index_of_an_older_version_is_repaired(root: Path) -> None:
    fill_version_4(root, [Span(tuple(range(i, i + 90)), "user", "word " * 80) for i in range(40)])
    data = bytearray((root / "index.sqlite").read_bytes())
    data[10 * 4096 + 3 : 10 * 4096 + 900] = NOISE[:897]
    (root / "index.sqlite").write_bytes(data)
    found = Store.repair_index(root)
    assert found is not None and found.contexts == 2
    with Store(root) as store:
        assert store.check().problems == ()
        tokens = {ctx: list(store.tokens(ctx)) for ctx in (A, B)}
        assert {len(t) for t in tokens.values()} <= {0, *range(90, 3601, 90)}
        assert store.adapters.all() == [AdapterRow("red", "/red.gguf", "f1")]
    assert all(t == [i + j for i in range(len(t) // 90) for j in range(90)] for t in tokens.values())


def test_a_large_store_is_taken_over_in_little_memory(root: Path) -> None:
    fill_version_4(root, [Span(tuple(range(i, i + 5000)), "user", "word " * 4000) for i in range(300)])
    assert (root / "index.sqlite").stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        Store(root).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    with Store(root) as store:
        assert len(store.tokens(ContextId("b"))) == 1_500_000

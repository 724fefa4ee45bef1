"""Times to live: stored with their context, gone with it, and never trusted where they are damaged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from llmaas.kvchunks.store import schema
from llmaas.kvchunks.store.store import Span, Store
from llmaas.records import ContextId
from tests.support.damaged_store import listening
from tests.support.store_data import A, B, glue, row


def index(root: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        return con.execute(sql).fetchall()


def ttls(store: Store) -> dict[str, float | None]:
    assert [summary.row for summary in store.summaries()] == store.contexts()
    return {str(found.id): found.ttl for found in store.contexts()}


def fill(root: Path) -> None:
    with Store(root) as store:
        for ctx in (A, B):
            store.create_context(replace(row(ctx), ttl=3600.0), [Span((1, 2), "user", "hello")])
        store.create_context(row("c"))


def test_it_is_stored_with_its_context_and_goes_with_it(root: Path) -> None:
    fill(root)
    with Store(root) as store:
        assert ttls(store) == {"a": 3600.0, "b": 3600.0, "c": None}
        store.append(A, [glue(3)], expect=2, now=11.0)
        store.truncate(A, 1, 12.0)
        store.fork(A, row("d"))
        store.delete_context(B)
        assert ttls(store) == {"a": 3600.0, "c": None, "d": None}
        assert store.check().problems == ()
        store.create_context(row("e"))  # perhaps with a number that was in use
        assert ttls(store)["e"] is None
    assert index(root, "SELECT count(*) FROM ttls") == [(1,)]


def test_a_damaged_one_is_put_right_or_forgotten_and_said(root: Path) -> None:
    fill(root)
    index(root, "UPDATE ttls SET ttl = 7.0 WHERE context = 1")
    index(root, "UPDATE ttls SET ttl = 3600.0 + 1.0 / 2048 / 1024 / 1024 / 256 WHERE context = 2")  # one bit
    with listening() as heard, Store(root) as store:
        assert ttls(store) == {"a": None, "b": 3600.0, "c": None}
        assert store.spans(A) == store.spans(B)
        assert [problem.kind.value for problem in store.check(repair=True).found] == ["ttl", "ttl"]
        assert store.check().problems == ()
    assert heard and all("'name of a'" in line and "it stays" in line for line in heard)


def test_one_of_another_context_is_not_taken_for_its_own(root: Path) -> None:
    fill(root)
    index(root, "UPDATE ttls SET context = 3 WHERE context = 1")
    with Store(root) as store:
        assert ttls(store) == {"a": None, "b": 3600.0, "c": None}


def test_they_come_through_a_repair_of_the_index(root: Path) -> None:
    fill(root)
    index(root, "UPDATE spans SET text = 'other words' WHERE id = 2")
    assert Store.repair_index(root) is not None
    with Store(root) as store:
        assert ttls(store) == {"a": 3600.0, "b": 3600.0, "c": None}
        assert store.check().problems == ()


def test_a_store_of_the_version_before_has_none_and_takes_some(root: Path) -> None:
    fill(root)
    index(root, "DROP TABLE moves")
    index(root, "DROP TABLE ttls")
    index(root, "DROP TABLE text_keys")
    index(root, "ALTER TABLE contexts DROP COLUMN text_key")
    index(root, "PRAGMA user_version = 6")
    with Store(root) as store:
        assert ttls(store) == {"a": None, "b": None, "c": None}
        store.create_context(replace(row("d"), ttl=0.5))
        assert ttls(store)[ContextId("d")] == 0.5
        assert store.check().problems == ()
    assert index(root, "PRAGMA user_version") == [(schema.VERSION,)]

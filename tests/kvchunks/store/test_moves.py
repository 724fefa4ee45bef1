"""Moves between nodes: stored with the context that came by them, kept for as long as somebody may ask."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from llmaas.errors import ContextExists, UnknownContext
from llmaas.kvchunks.store.move_rows import MoveRow, MoveState
from llmaas.kvchunks.store.store import MasterKey, Span, Store
from llmaas.records import AppId, ContextId
from tests.support.damaged_store import listening
from tests.support.store_data import A, B, row

CAME = MoveRow("m1", "desk", A, MoveState.ARRIVED)
LEAVES = MoveRow("m2", "desk", B, MoveState.LEAVING)


def index(root: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        return con.execute(sql).fetchall()


def origins(store: Store) -> dict[str, str]:
    assert [summary.row for summary in store.summaries()] == store.contexts()
    return {str(found.id): found.origin for found in store.contexts()}


def fill(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row(A), [Span((1, 2), "user", "hello")], CAME)
        store.create_context(row(B))
        store.moves.put(LEAVES)


def test_a_move_is_there_with_its_context_or_neither_is(root: Path) -> None:
    fill(root)
    with Store(root) as store:
        assert store.moves.all() == [CAME, LEAVES]
        assert store.moves.find("m1") == CAME and store.moves.find("m3") is None
        assert origins(store) == {"a": "desk", "b": ""}, "what only leaves has not come from there"
        with pytest.raises(ContextExists):
            store.create_context(replace(row(A), id=ContextId("z")), (), replace(CAME, move="m3"))
        assert store.moves.find("m3") is None
        store.moves.forget("m2")
        assert store.moves.all() == [CAME]
        assert store.check().problems == ()


@pytest.mark.parametrize("master", [None, MasterKey(bytes(32))])
def test_one_that_has_waited_becomes_another_ones_whole_or_not_at_all(root: Path, master: MasterKey | None) -> None:
    spans = [Span((1, 2), "user", "hello"), Span((5,)), Span((6, 7), "assistant", "hi", True)]
    with Store(root, master=master) as store:
        store.create_context(replace(row(A), app=AppId("waits"), ttl=5.0), [Span((1, 2), "user", "hello"), Span((6,))])
        store.create_context(replace(row(B), name="taken"))
        became = replace(row(A), name="x", adapter="loud", ttl=9.0)
        with pytest.raises(ContextExists, match="taken"):
            store.adopt_context(replace(became, name="taken"), spans, CAME)
        assert store.moves.all() == [] and len(store.spans(A)) == 2 and store.contexts()[0].app == "waits"
        store.adopt_context(became, spans, CAME)
        with pytest.raises(UnknownContext):
            store.adopt_context(replace(became, id=ContextId("z")), spans, CAME)
    with Store(root, master=master) as store:
        found = next(found for found in store.contexts() if found.id == A)
        assert found == replace(became, n_tokens=5, origin="desk")
        assert store.spans(A) == spans and store.moves.all() == [CAME]
        store.append(A, [Span((8,))], expect=5, now=9.0)
        assert store.check().problems == ()


def test_of_a_context_that_is_deleted_there_is_an_answer_until_nobody_will_ask(root: Path) -> None:
    fill(root)
    with Store(root) as store:
        store.delete_context(A)
        assert store.moves.find("m1") == CAME
        store.moves.settle(CAME)
        assert store.moves.all() == [LEAVES]


def test_of_one_that_is_settled_only_its_origin_stays_and_goes_with_it(root: Path) -> None:
    fill(root)
    with Store(root) as store:
        store.moves.settle(CAME)
        assert store.moves.find("m1") == replace(CAME, state=MoveState.SETTLED)
        assert origins(store)["a"] == "desk"
        store.delete_context(A)
        assert store.moves.all() == [LEAVES]


def test_a_damaged_one_is_as_good_as_not_there_and_said(root: Path) -> None:
    fill(root)
    index(root, "UPDATE moves SET node = 'other' WHERE move = 'm1'")
    with listening() as heard, Store(root) as store:
        assert store.moves.all() == [LEAVES]
        assert origins(store) == {"a": "", "b": ""}
        assert store.spans(A) == [Span((1, 2), "user", "hello")]
    assert heard and all("is damaged on disk, and forgotten" in line for line in heard)


def test_they_come_through_a_repair_of_the_index(root: Path) -> None:
    fill(root)
    index(root, "UPDATE spans SET text = 'other words' WHERE id = 1")
    assert Store.repair_index(root) is not None
    with Store(root) as store:
        assert store.moves.all() == [CAME, LEAVES]
        assert store.check().problems == ()

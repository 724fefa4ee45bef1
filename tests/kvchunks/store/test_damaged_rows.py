"""A damaged row in a sound index: it costs its own context at most, and is said."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from llmaas.errors import ContextDamaged, StoreFailed
from llmaas.kvchunks.store import salvage
from llmaas.kvchunks.store.store import AdapterRow, Span, Store
from llmaas.records import ChunkKey, ChunkMeta, ChunkSensitivity, ContextId, Precision
from tests.support.damaged_store import MASTER, copy_store, fill, flip, listening, read, repaired
from tests.support.store_data import A, B, data, glue, key, row

SPANS = [glue(1, 2), Span((3, 4, 5), "user", "hello there"), Span((6,), "assistant", "hi", open=True)]


def change(root: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        assert con.execute(sql, values).rowcount == 1


@pytest.fixture
def two(root: Path) -> Path:
    with Store(root) as store:
        store.create_context(row(A), SPANS)
        store.create_context(row(B), SPANS)
    return root


def test_a_damaged_span_is_said_with_what_can_be_read_and_others_work(two: Path) -> None:
    change(two, "UPDATE spans SET text = 'good bye' WHERE id = 2")
    told = r"'name of a' of 1000/notes \(a\) is damaged on disk: 2 of 6 tokens could be read"
    with Store(two) as store:
        assert [c.id for c in store.contexts()] == [A, B]
        for use in (store.spans, store.tokens, lambda ctx: store.truncate(ctx, 1, 5.0)):
            with pytest.raises(ContextDamaged, match=told) as error:
                use(A)
        assert "doctor --repair" in error.value.hint
        assert store.spans(B) == SPANS
        assert [told.replace(" is damaged on disk", "") for told in store.check(repair=True).problems] != []
        with pytest.raises(ContextDamaged):  # ``check`` never drops tokens
            store.spans(A)
        store.delete_context(A)
        assert store.check().problems == ()


@pytest.mark.parametrize(("column", "value"), [("vocab", "vocab-2"), ("adapter", "other"), ("created", 1234.56)])
def test_a_context_whose_row_was_altered_is_not_taken_for_right(two: Path, column: str, value: object) -> None:
    change(two, f"UPDATE contexts SET {column} = ? WHERE id = 'a'", value)
    with Store(two) as store:
        for use in (
            lambda: store.spans(A),
            lambda: store.append(A, [glue(7)], expect=6, now=0.0),
            lambda: store.rewrite(A, [glue(7)], expect=6, now=0.0),
            lambda: store.fork(A, row("c")),
        ):
            with pytest.raises(ContextDamaged, match=r"'name of a' of 1000/notes .* its row in the index"):
                use()
        assert store.append(B, [glue(7)], expect=6, now=0.0) == 7
        assert len(store.contexts()) == 2
    found = Store.repair_index(two)
    assert found is not None and (found.contexts, found.shortened, found.lost) == (2, (), 0)
    assert [(m.name, m.app) for m in found.mended] == [("name of a", "1000/notes")]
    with Store(two) as store:
        assert store.spans(A) == SPANS
        assert store.contexts()[0].vocab == "vocab-1", "that of the others"


def test_a_span_that_is_filed_under_another_context_is_given_back_and_told(two: Path) -> None:
    change(two, "UPDATE spans SET context = 77 WHERE id = 2")
    with Store(two) as store, pytest.raises(ContextDamaged, match="2 of 6 tokens"):
        store.spans(A)
    found = Store.repair_index(two)
    assert found is not None and (found.contexts, found.shortened, found.lost) == (2, (), 0)
    assert [(told.name, told.what) for told in found.mended] == [
        ("name of a", "1 of its messages had damaged bits, which were put right; it is whole")
    ]
    with Store(two) as store:
        assert store.spans(A) == store.spans(B) == SPANS


def test_the_search_for_a_spans_context_is_bounded_and_what_it_misses_is_told(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(salvage, "MOST_TRIES", 0)
    change(two, "UPDATE spans SET context = 77 WHERE id = 2")
    found = Store.repair_index(two)
    assert found is not None and [(short.name, short.kept) for short in found.shortened] == [("name of a", 2)]
    assert found.lost == 1, "of that number there is a span, and no name"


def test_a_message_without_tokens_that_is_missing_is_noticed(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row(A), [*SPANS, Span((), "user", "")])
    change(root, "DELETE FROM spans WHERE id = 4")
    with Store(root) as store, pytest.raises(ContextDamaged, match="6 of 6 tokens could be read"):
        store.spans(A)
    found = Store.repair_index(root)
    assert found is not None and [(short.kept, short.n_tokens) for short in found.shortened] == [(6, 6)]


def test_a_wrong_count_is_put_right_by_the_next_turn(two: Path) -> None:
    change(two, "UPDATE contexts SET n_tokens = 4000 WHERE id = 'a'")
    with listening() as heard, Store(two) as store:
        assert [c.n_tokens for c in store.contexts()] == [6, 6]
        assert "recounted" in heard[0]
        assert store.append(A, [glue(7)], expect=6, now=10.0) == 7
        assert store.check().problems == ()


def test_a_flipped_bit_is_put_right_in_memory_and_by_repair_on_disk(two: Path) -> None:
    change(two, "UPDATE spans SET text = 'hello thera' WHERE id = 2")
    change(two, "UPDATE contexts SET model = 'diny' WHERE id = 'b'")
    with listening() as heard, Store(two) as store:
        assert [c.model for c in store.contexts()] == ["tiny", "tiny"]
        assert store.spans(A) == store.spans(B) == SPANS
        assert store.append(B, [glue(7)], expect=6, now=10.0) == 7
        assert len(store.check().problems) == 2
    assert len(heard) == 2
    found = Store.repair_index(two)
    assert found is not None and {m.name for m in found.mended} == {"name of a", "name of b"}
    with listening() as heard, Store(two) as store:
        assert (store.spans(A), store.spans(B)) == (SPANS, [*SPANS, glue(7)])
        assert store.check().problems == ()
    assert heard == []


def test_a_damaged_adapter_is_not_registered_and_said(root: Path) -> None:
    with Store(root) as store:
        for name in ("red", "blue"):
            store.adapters.save(AdapterRow(name, f"/{name}.gguf", "f1"))
    change(root, "UPDATE adapters SET path = '/other.gguf' WHERE name = 'red'")
    with listening() as heard, Store(root) as store:
        assert store.adapters.all() == [AdapterRow("blue", "/blue.gguf", "f1")]
    assert "damaged" in heard[0]
    found = Store.repair_index(root)
    assert found is not None and found.adapters_lost == 1
    with Store(root) as store:
        store.adapters.save(AdapterRow("red", "/red.gguf", "f1"))
        assert len(store.adapters.all()) == 2


@pytest.mark.parametrize(("column", "value"), [("k_bits", 17), ("v_bits", -1), ("k_change", -2.0), ("at", 1 << 60)])
def test_what_is_known_of_a_chunk_is_dropped_if_it_is_out_of_range(root: Path, column: str, value: float) -> None:
    meta = ChunkMeta(Precision(4, 3), ChunkSensitivity(0.1, 0.2, 0.3, 4.0, 70))
    with Store(root) as store:
        store.put(A, [(key(i), 64, data(i, 100)) for i in range(2)], {key(0): meta, key(1): meta})
    column = {"at": "measured_at"}.get(column, column)
    change(root, f"UPDATE chunks SET {column} = ? WHERE key = ?", value, key(1))
    with listening() as heard, Store(root) as store:
        left = {chunk.key: chunk.meta for chunk in store.chunks()}
        assert left == {key(0): meta, key(1): None if "bits" in column else ChunkMeta(Precision(4, 3))}
        assert "1 chunks" in heard[0]
        assert [problem.kind.value for problem in store.check(repair=True).found] == ["meta"]
        assert {chunk.key: chunk.meta for chunk in store.chunks()} == left
        assert store.check().problems == ()
        assert bytes(store.get([key(1)])[0] or b"") == data(1, 100)


def test_a_chunk_whose_row_and_bytes_are_damaged_does_not_hold_a_reader_for_ever(root: Path) -> None:
    name = ChunkKey(b"0123456789abcdef")
    with Store(root, master=MASTER) as store:
        store.put(A, [(name, 64, data(1, 100))])
    index = (root / "index.sqlite").read_bytes()
    places = [at for at in range(len(index)) if index.startswith(name, at)]
    assert len(places) == 2, "in the table, and in its index"
    for at in places:
        copy = copy_store(root, root.with_name(f"copy-{at}"))
        flip(copy / "index.sqlite", 8 * at)
        flip(copy / "payload" / "00000001.kv", 8 * 50)
        with Store(copy, master=MASTER) as store:
            assert store.get([name, ChunkKey(bytes([index[at] ^ 1]) + name[1:])]) == [None, None]


def test_a_repair_keeps_the_chunks_and_their_keys(memory: Path) -> None:
    fill(memory / "store", contexts=4)
    with Store(memory / "store", master=MASTER) as store:
        before = sorted(store.chunks())
        bodies = store.get([chunk.key for chunk in before])
    change(memory / "store", "UPDATE spans SET text = 'other' WHERE id = 1")
    assert Store.repair_index(memory / "store") is not None
    with Store(memory / "store", master=MASTER) as store:
        assert sorted(store.chunks()) == before
        assert store.get([chunk.key for chunk in before]) == bodies
        assert store.check().problems == ()


def test_a_damaged_version_number_is_told_by_the_tables(two: Path) -> None:
    for version in (0, 1, 4, 5, 6, 7, 8, 10, 1 << 30):
        with closing(sqlite3.connect(two / "index.sqlite")) as con:
            con.execute(f"PRAGMA user_version = {version}")
        with listening() as heard, Store(two) as store:
            assert store.spans(A) == SPANS
        assert "version" in heard[0]
        with listening() as heard, Store(two) as store:
            assert heard == []


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_to_the_first_page_everything_is_kept(memory: Path, seed: int) -> None:
    fill(memory / "whole", contexts=8)
    whole = read(memory / "whole")
    for at in range(seed, 4096, 97):
        root = copy_store(memory / "whole", memory / "damaged")
        flip(root / "index.sqlite", 8 * at + (at + seed) % 8)
        found = read(root)
        assert found.content() == whole.content() or "llmaas doctor --repair" in found.said, at
        assert repaired(root)[0].content() == whole.content(), at
    root = copy_store(memory / "whole", memory / "damaged")
    with (root / "index.sqlite").open("r+b") as file:
        file.write(bytes(4096))
    with pytest.raises(StoreFailed) as error:
        Store(root)
    assert "doctor --repair" in error.value.hint
    assert repaired(root)[0].content() == whole.content()
    assert {path.name for path in root.glob("index.sqlite*")} == {"index.sqlite", "index.sqlite.corrupt-1"}
    assert ContextId("f" * 16) in {row.id for row in whole.rows.values()}

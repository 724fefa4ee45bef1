"""Damaged payload files and wrong rows: what get, opening and check make of them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from llmaas.kvchunks.store.store import Store
from llmaas.records import ContextId
from tests.support.store_data import data, glue, key, payload_files, row


def test_a_flipped_payload_comes_back_as_it_is_and_the_deep_check_reports_it(root: Path) -> None:
    with Store(root) as store:
        store.put(ContextId("a"), [(key(i), 64, data(i, 5000)) for i in range(3)])
        flipped = bytearray(data(1, 5000))
        flipped[17] ^= 4
        with payload_files(root)[0].open("r+b") as file:
            file.seek(5000)
            file.write(flipped)
        assert bytes(store.get([key(1)])[0] or b"") == flipped
        assert store.check(deep=False).problems == ()
        report = store.check()
        assert len(report.problems) == 1 and key(1).hex() in report.problems[0]
        assert store.check(repair=True).repaired
        assert store.check().problems == ()
        assert [v is None for v in store.get([key(0), key(1), key(2)])] == [False, True, False]


def test_a_torn_payload_file_costs_only_the_chunks_behind_the_tear(root: Path) -> None:
    keys = [key(i) for i in range(4)]
    with Store(root) as store:
        store.put(ContextId("a"), [(k, 64, data(i, 5000)) for i, k in enumerate(keys)])
        os.truncate(payload_files(root)[0], 12_000)
        assert len(store.check(deep=False).problems) == 2
        assert [v is None for v in store.get(keys)] == [False, False, True, True]
        assert store.stats().damaged == 2
        assert store.check().problems == ()
        store.put(ContextId("a"), [(keys[2], 64, b"again")])
        assert bytes(store.get(keys[2:3])[0] or b"") == b"again"


def test_a_missing_payload_file_is_a_miss_found_by_get_or_by_opening(root: Path) -> None:
    store = Store(root)
    for ctx in "ab":
        store.put(ContextId(ctx), [(key((ctx, i)), 64, data(i, 5000)) for i in range(2)])
    a, b = payload_files(root)
    a.unlink()
    assert [v is None for v in store.get([key(("a", 0)), key(("b", 0))])] == [True, False]
    assert store.stats().damaged == 1
    store.close()
    b.unlink()
    with Store(root) as store:
        assert list(store.chunks()) == []
        assert store.stats().damaged == 3
        assert store.check().problems == ()
        store.put(ContextId("b"), [(key(("b", 0)), 64, b"new")])
        assert bytes(store.get([key(("b", 0))])[0] or b"") == b"new"


def test_an_append_to_a_file_that_lost_its_tail_never_shows_other_bytes_under_the_lost_keys(root: Path) -> None:
    with Store(root) as store:
        store.put(ContextId("a"), [(key(1), 64, data(1, 5000)), (key(2), 64, data(2, 5000))])
        os.truncate(payload_files(root)[0], 5000)
        store.put(ContextId("a"), [(key(3), 64, data(3, 5000))])
        lost, new = store.get([key(2), key(3)])
        assert lost is None or not bytes(lost).strip(b"\0")
        assert bytes(new or b"") == data(3, 5000)


def test_orphan_payload_files_are_reported_and_swept_at_opening(root: Path) -> None:
    orphan = root / "payload" / "000000ff.kv"
    with Store(root) as store:
        store.put(ContextId("a"), [(key(1), 64, b"abc")])
        orphan.write_bytes(b"left by a crash")
        orphan.chmod(0o600)
        assert store.check().problems == (f"{orphan}: no row names it",)
        assert store.check(repair=True).problems
        assert not orphan.exists()
        orphan.write_bytes(b"left by a crash")
    with Store(root) as store:
        assert not orphan.exists()
        store.put(ContextId("b"), [(key(2), 64, b"def")])
        assert not orphan.exists()  # its number is not used again either
        assert store.check().problems == ()


def test_check_finds_wrong_counts_overlaps_and_loose_modes_and_repairs_them(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2, 3)])
        store.put(ContextId("a"), [(key(1), 64, b"abcd"), (key(2), 64, b"efgh")])
    with sqlite3.connect(root / "index.sqlite") as con:
        con.execute("UPDATE contexts SET n_tokens = 9")
        con.execute("UPDATE chunks SET offset = 2 WHERE key = ?", (key(2),))
    con.close()
    with Store(root) as store:
        payload_files(root)[0].chmod(0o644)
        problems = " / ".join(store.check(repair=True).problems)
        assert "3 tokens, but counted as 9" in problems
        assert "overlaps" in problems
        assert "mode 0644" in problems
        assert store.check().problems == ()
        assert list(store.tokens(ContextId("a"))) == [1, 2, 3]
        assert store.contexts()[0].n_tokens == 3
        assert [k for k, *_ in store.chunks()] == [key(1)]

"""The store on disks that fail: one fault at every site, and none undoes what was committed."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from llmaas.errors import DiskFull, Fault, MachineError, StoreFailed
from llmaas.kvchunks.store.chain import RAW_SPANS
from llmaas.kvchunks.store.store import Files, MasterKey, Span, Store
from llmaas.records import ChunkKey
from tests.support.store_data import BIG, SMALL, A, B, items, row
from tests.support.troubled_files import Trouble, TroubledConnection, TroubledFiles

STEPS: list[Callable[[Store], object]] = [
    lambda s: s.create_context(row(A), [Span((1, 2), "user", "hello")]),
    lambda s: s.put(A, BIG),
    lambda s: s.put(A, SMALL),
    lambda s: s.append(A, [Span((3, 4)), Span((5,), "assistant", "yes")], expect=2, now=11.0),
    lambda s: s.fork(A, row(B)),
    lambda s: s.put(B, items("of b", 2, 5_000)),
    lambda s: s.truncate(A, 3, 12.0),
    lambda s: s.discard([k for k, _, _ in BIG[:3]]),  # rewrites the file
    lambda s: s.discard([k for k, _, _ in items("of b", 2, 1)]),  # unlinks the file
    lambda s: s.delete_context(B),
]


def content(store: Store) -> object:
    """All that the store promises to keep."""
    keys = sorted(k for k, *_ in store.chunks())
    views = store.get(keys)
    assert None not in views
    return (
        [(c, store.spans(c.id), list(store.tokens(c.id))) for c in store.contexts()],
        sorted(store.chunks()),
        [xxhash.xxh3_128_digest(v or b"") for v in views],
    )


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What the store holds before the first step and after each, when nothing goes wrong."""
    with Store(tmp_path_factory.mktemp("calm") / "store") as store:
        found = [content(store)]
        for step in STEPS:
            step(store)
            found.append(content(store))
    return found


def until_it_works(call: Callable[[], Any], after_a_fault: Callable[[], None], wanted: type[MachineError]) -> Any:
    for _ in range(2):
        try:
            return call()
        except MachineError as error:
            assert type(error) is wanted
            assert error.fault is Fault.MACHINE
            after_a_fault()
    return call()


@pytest.mark.parametrize("master", [None, MasterKey(bytes(32))], ids=["clear", "encrypted"])
@pytest.mark.parametrize(("code", "wanted"), [(errno.ENOSPC, DiskFull), (errno.EIO, StoreFailed)])
def test_a_fault_at_any_write_site_loses_nothing_and_the_call_can_be_repeated(
    code: int, wanted: type[MachineError], master: MasterKey | None, memory: Path, contents: list[object]
) -> None:
    n = 0
    fired = True
    while fired:
        n += 1
        trouble = Trouble(code, n)
        root = memory / str(n)
        files = TroubledFiles(trouble)
        store = until_it_works(lambda: Store(root, master=master, files=files, wal_limit=20_000), bool, wanted)  # noqa: B023
        with store:
            for i, step in enumerate(STEPS):
                size = store.stats().file_bytes

                def unchanged() -> None:
                    assert content(store) == contents[i]  # noqa: B023
                    assert store.stats().file_bytes == size  # noqa: B023

                until_it_works(lambda: step(store), unchanged, wanted)  # noqa: B023
                assert content(store) == contents[i + 1]
            fired = trouble.fired
            assert store.stats().damaged == 0
        with Store(root, master=master) as store:
            assert content(store) == contents[-1]
            assert store.check().problems == ()
    assert n > 50  # the sites of every step were reached


def test_a_discard_on_a_disk_with_no_room_even_for_the_log_frees_the_files_first(tmp_path: Path) -> None:
    root = tmp_path / "store"
    trouble = Trouble(errno.ENOSPC, at=1 << 60, stays=True)
    with Store(root, files=TroubledFiles(trouble)) as store:
        store.create_context(row(A), [Span((1, 2))])
        store.put(A, SMALL)
        trouble.at = trouble.sites + 1
        with pytest.raises(DiskFull):
            store.discard([k for k, _, _ in SMALL])  # unlink has no room either here: nothing happens
        assert len(store.get([k for k, _, _ in SMALL])) == 3
        assert None not in store.get([k for k, _, _ in SMALL])
        with pytest.raises(DiskFull):
            store.append(A, [Span((3,))], expect=2, now=0.0)

        class RoomForUnlink(TroubledFiles):
            unlink = Files.unlink

    with Store(root, files=RoomForUnlink(trouble := Trouble(errno.ENOSPC, at=1 << 60, stays=True))) as store:
        trouble.at = trouble.sites + 1
        with pytest.raises(DiskFull):
            store.discard([k for k, _, _ in SMALL])
        assert list((root / "payload").iterdir()) == []
        assert store.get([k for k, _, _ in SMALL]) == [None] * 3  # their rows stay, and a row without bytes is a miss
        trouble.at = 1 << 60
        assert store.get([k for k, _, _ in SMALL]) == [None] * 3
        assert list(store.chunks()) == []
        assert store.check().problems == ()
        assert list(store.tokens(A)) == [1, 2]


class Blind(Files):
    """While ``blind``, the length of the log is not to be had."""

    blind = False

    def path_size(self, path: Path) -> int:
        if self.blind and path.name.endswith("-wal"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return super().path_size(path)


def test_a_commit_whose_log_cannot_be_measured_is_a_commit_all_the_same(tmp_path: Path) -> None:
    files = Blind()
    with Store(tmp_path / "store", files=files) as store:
        store.create_context(row(A), [Span((1, 2))])
        files.blind = True
        assert store.append(A, [Span((3,))], expect=2, now=0.0) == 3
        with pytest.raises(StoreFailed, match="Input/output error"):
            store.stats()
        files.blind = False
        assert list(store.tokens(A)) == [1, 2, 3]


def test_a_truncation_whose_rest_cannot_be_read_has_not_happened(tmp_path: Path) -> None:
    trouble = Trouble(errno.EIO, at=1 << 60)

    class Unreadable(TroubledConnection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql.startswith(RAW_SPANS) and self.trouble.due():
                raise sqlite3.OperationalError("disk I/O error")
            return sqlite3.Connection.execute(self, sql, *args)

    class UnreadableFiles(Files):
        def connect(self, path: Path) -> sqlite3.Connection:
            factory = type("Connection", (Unreadable,), {"trouble": trouble})
            return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=factory)

    with Store(tmp_path / "store", files=UnreadableFiles()) as store:
        spans = [Span((1, 2), "user", "hello"), Span((3, 4, 5))]
        store.create_context(row(A), spans)
        trouble.at = trouble.sites + 1
        with pytest.raises(StoreFailed):
            store.truncate(A, 3, 1.0)
        assert store.spans(A) == spans
        assert store.truncate(A, 3, 1.0) == [spans[0], Span((3,))] == store.spans(A)


def test_commits_of_tokens_are_synced_and_commits_of_chunks_are_not(tmp_path: Path) -> None:
    commits: list[str] = []

    class Witness(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                level = super().execute("PRAGMA synchronous").fetchone()[0]
                commits.append({1: "normal", 2: "full"}[level])
            return super().execute(sql, *args)

    class Witnesses(Files):
        def connect(self, path: Path) -> sqlite3.Connection:
            return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Witness)

    with Store(tmp_path / "store", files=Witnesses()) as store:
        levels = []
        for step in STEPS:
            commits.clear()
            step(store)
            levels.append(list(commits))
    create, put, put_more, append, fork, put_b, truncate, rewrite, unlink, delete = levels
    assert create == append == fork == truncate == delete == ["full"]
    assert put == put_more == put_b == unlink == ["normal"]
    assert rewrite == ["normal", "full"]  # the old file goes for good


def test_a_deletion_that_is_committed_has_happened_even_if_nothing_can_be_measured_afterwards(tmp_path: Path) -> None:
    class Blind(Files):
        blind = False

        def path_size(self, path: Path) -> int:
            if self.blind:
                raise OSError(errno.EIO, "cannot be measured", str(path))
            return super().path_size(path)

    files = Blind()
    with Store(tmp_path / "store", files=files, master=MasterKey(bytes(32))) as store:
        store.create_context(row(A))
        store.put(A, [(ChunkKey(bytes(16)), 64, b"chunk")])
        files.blind = True
        assert store.delete_context(A) == [ChunkKey(bytes(16))]
        files.blind = False
        assert store.contexts() == []

"""The store on disks that are full, broken or strange: one fault at every site, and a real full disk."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import xxhash

from llmaas.errors import DiskFull, Fault, MachineError, StoreFailed
from llmaas.kvchunks.store import repair as store_repair
from llmaas.kvchunks.store.store import AdapterRow, ContextRow, Files, MasterKey, Span, Store
from llmaas.records import AppId, ChunkKey, ContextId

NOISE = random.Random(2).randbytes(500_000)
A, B = ContextId("a"), ContextId("b")


def key(name: object) -> ChunkKey:
    return ChunkKey(hashlib.blake2b(repr(name).encode(), digest_size=16).digest())


def row(ctx: ContextId) -> ContextRow:
    return ContextRow(ctx, AppId("1000/notes"), f"name of {ctx}", "tiny", "vocab-1", 10.0, 10.0, 0)


class Trouble:
    """Raises at the ``at``-th site that asks, once; with ``stays`` at every one from then on."""

    def __init__(self, code: int, at: int, *, stays: bool = False) -> None:
        self.code, self.at, self.stays = code, at, stays
        self.sites = 0

    @property
    def fired(self) -> bool:
        return self.sites >= self.at

    def due(self) -> bool:
        self.sites += 1
        return self.sites == self.at or (self.stays and self.fired)

    def site(self, path: object = None) -> None:
        if self.due():
            raise OSError(self.code, os.strerror(self.code), path and str(path))


WRITES = ("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE", "CREATE", "COMMIT", "PRAGMA wal_checkpoint")


class TroubledConnection(sqlite3.Connection):
    trouble: Trouble

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self._write_site(sql)
        return super().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self._write_site(sql)
        return super().executemany(sql, *args)

    def _write_site(self, sql: str) -> None:
        if sql.startswith(WRITES) and self.trouble.due():
            full = self.trouble.code == errno.ENOSPC
            raise sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")


class TroubledFiles(Files):
    """Faults at every call that changes something, and transfers that stop short."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if flags & os.O_CREAT:
            self.trouble.site(path)
        return super().open(path, flags, mode)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.trouble.site()
        return super().pwritev(fd, [buffers[0][: max(1, len(buffers[0]) * 2 // 3)]], offset)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        return super().pread_into(fd, buffer[: 1 + len(buffer) // 2], offset)

    def ftruncate(self, fd: int, size: int) -> None:
        self.trouble.site()
        super().ftruncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        self.trouble.site()
        super().fdatasync(fd)

    def unlink(self, path: Path) -> None:
        self.trouble.site(path)
        super().unlink(path)

    def sync_folder(self, path: Path) -> None:
        self.trouble.site(path)
        super().sync_folder(path)

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = type("Connection", (TroubledConnection,), {"trouble": self.trouble})
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=connection)


# -- one fault at every site


def items(name: str, n: int, size: int) -> list[tuple[ChunkKey, int, bytes]]:
    return [(key((name, i)), 64, NOISE[i : i + size]) for i in range(n)]


BIG, SMALL = items("big", 4, 400_000), items("small", 3, 5_000)

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


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is such a thing: hundreds of stores are quicker there."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="llmaas-", dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield Path(folder)


def until_it_works(call: Callable[[], Any], after_a_fault: Callable[[], None], wanted: type[MachineError]) -> Any:
    for _ in range(2):
        try:
            return call()
        except MachineError as error:
            assert type(error) is wanted
            assert error.fault is Fault.MACHINE
            after_a_fault()
    return call()


@pytest.mark.parametrize("master", [None, MasterKey(bytes(32))], ids=["clear", "sealed"])
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
            if sql.startswith("SELECT tokens") and self.trouble.due():
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


# -- reading


class SickReads(Files):
    """EIO wherever a read touches ``sector``."""

    def __init__(self, sector: int) -> None:
        self.sector = sector

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        if offset <= self.sector < offset + len(buffer):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread_into(fd, buffer, offset)


def test_a_bad_sector_costs_one_chunk_and_not_its_neighbours(tmp_path: Path) -> None:
    with Store(tmp_path / "store", files=SickReads(sector=7_000)) as store:
        store.put(A, SMALL)
        keys = [k for k, _, _ in SMALL]
        assert [v is None for v in store.get(keys)] == [False, True, False]
        assert store.stats().damaged == 1
        assert [v is None for v in store.get(keys)] == [False, True, False]
        assert store.check().problems == ()


class Meanwhile(Files):
    """Does something between the look-up of the next ``get`` and its reading."""

    def __init__(self) -> None:
        self.deed: Callable[[], object] | None = None

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        deed, self.deed = self.deed, None
        if deed:
            deed()
        return super().open(path, flags, mode)


def test_a_reader_whose_chunk_is_discarded_meanwhile_never_gets_the_bytes_that_are_put_next(tmp_path: Path) -> None:
    first, gone, new = items("of a reader", 3, 5_000)
    files = Meanwhile()
    with Store(tmp_path / "store", files=files) as store:
        store.put(A, [first, gone])
        files.deed = lambda: (store.discard([gone[0]]), store.put(A, [new]))
        for view, item in zip(store.get([first[0], gone[0]]), [first, gone], strict=True):
            assert view is None or bytes(view) == item[2]
        assert bytes(store.get([new[0]])[0] or b"") == new[2]
        assert store.stats().damaged == 0


def test_a_reader_whose_chunk_is_moved_meanwhile_finds_it_at_its_new_place(tmp_path: Path) -> None:
    files = Meanwhile()
    with Store(tmp_path / "store", files=files) as store:
        store.put(A, BIG)
        files.deed = lambda: store.discard([k for k, _, _ in BIG[:3]])
        assert bytes(store.get([BIG[3][0]])[0] or b"") == BIG[3][2]
        assert [p.name for p in (tmp_path / "store" / "payload").iterdir()] == ["00000002.kv"]
        assert store.stats().damaged == 0


def test_an_orphan_file_that_cannot_be_deleted_is_in_nobodys_way(tmp_path: Path) -> None:
    class Immortal(Files):
        def unlink(self, path: Path) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    root = tmp_path / "store"
    Store(root).close()
    (root / "payload" / "00000001.kv").write_bytes(b"left by a crash")
    with Store(root, files=Immortal()) as store:
        store.put(A, SMALL)
        assert None not in store.get([k for k, _, _ in SMALL])
        assert "00000001.kv: no row names it" in store.check().problems[0]


def test_a_process_without_file_descriptors_loses_no_chunk(tmp_path: Path) -> None:
    class Crowded(Files):
        full = False

        def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
            if self.full:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
            return super().open(path, flags, mode)

    files = Crowded()
    with Store(tmp_path / "store", files=files) as store:
        store.put(A, SMALL)
        files.full = True
        with pytest.raises(StoreFailed, match=r"00000001\.kv: Too many open files"):
            store.get([SMALL[0][0]])
        files.full = False
        assert bytes(store.get([SMALL[0][0]])[0] or b"") == SMALL[0][2]


# -- the index


def test_a_damaged_index_is_named_and_moved_aside_only_on_request(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Store(root) as store:
        store.create_context(row(A), [Span((1, 2))])
        store.put(A, SMALL)
    index = root / "index.sqlite"
    assert Store.repair_index(root) is None  # a sound one is never moved
    index.write_bytes(b"this is no database, but long enough to be read as one" * 100)
    with pytest.raises(StoreFailed, match=r"index\.sqlite is damaged") as caught:
        Store(root)
    assert "llmaas doctor --repair" in caught.value.hint
    assert index.exists()
    repaired = Store.repair_index(root)
    assert repaired is not None and repaired.moved == root / "index.sqlite.corrupt-1"
    assert (repaired.contexts, repaired.shortened) == (0, ())
    with Store(root) as store:
        assert store.contexts() == []
        assert store.check().problems == ()
    index.write_bytes(b"again" * 1000)
    again = Store.repair_index(root)
    assert again is not None and again.moved == root / "index.sqlite.corrupt-2"
    index.unlink()
    with pytest.raises(StoreFailed, match="there is no index"):
        Store.repair_index(root)


ADAPTER = AdapterRow("red", "/red.gguf", "f1")


def conversation(i: int) -> list[Span]:
    return [Span(tuple(range(i, i + 300)), "user", f"word {i} " * 100), Span((i,) * 7, "assistant", "yes", open=True)]


def full_index(root: Path) -> dict[ContextId, list[Span]]:
    """200 conversations told in turns, so that each lies in many places, and some chunks."""
    kept: dict[ContextId, list[Span]] = {}
    with Store(root) as store:
        for i in range(200):
            store.create_context(row(ContextId(f"{i}")), conversation(i))
        for i in range(200):
            ctx = ContextId(f"{i}")
            store.append(ctx, conversation(i + 1000), expect=307, now=20.0 + i)
            kept[ctx] = [*conversation(i), *conversation(i + 1000)]
        store.put(A, SMALL)
        store.adapters.save(ADAPTER)
    return kept


@pytest.mark.parametrize("page", [1, 3, 40, 100, 140])
def test_what_can_be_read_of_a_damaged_index_is_kept(tmp_path: Path, page: int) -> None:
    root = tmp_path / "store"
    whole = full_index(root)
    with (root / "index.sqlite").open("r+b") as file:
        file.seek(page * 4096)
        file.write(NOISE[:4096])
    before = (root / "index.sqlite").read_bytes()
    repaired = Store.repair_index(root)
    assert repaired is not None
    assert repaired.moved.read_bytes() == before
    with Store(root) as store:
        assert store.check().problems == ()
        found = {c.id: store.spans(c.id) for c in store.contexts()}
        assert len(found) == repaired.contexts
        assert store.adapters.all() == [ADAPTER]
        shortened = {short.name: short for short in repaired.shortened}
        for ctx, spans in found.items():
            assert spans == whole[ctx][: len(spans)]
            short = shortened.pop(f"name of {ctx}", None)
            assert (short is None) == (len(spans) == 4)
            assert short is None or (short.kept, short.n_tokens) == (sum(len(s.tokens) for s in spans), 614)
        assert shortened == {}
        assert (len(found), repaired.lost) == (200, 0)
        assert len(repaired.shortened) < 10
        for view, item in zip(store.get([k for k, _, _ in SMALL]), SMALL, strict=True):
            assert view is None or bytes(view) == item[2]
    assert Store.repair_index(root) is None


def test_a_repair_that_is_killed_between_two_renames_is_ended_by_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    whole = full_index(root)
    with (root / "index.sqlite").open("r+b") as file:
        file.seek(40 * 4096)
        file.write(NOISE[:4096])

    def killed(*_: object) -> None:
        raise OSError(errno.EINTR, "as good as killed")

    monkeypatch.setattr(store_repair, "finish", killed)
    with pytest.raises(StoreFailed):
        Store.repair_index(root)
    monkeypatch.undo()
    assert not (root / "index.sqlite").exists()
    (root / "index.sqlite-wal").write_bytes(NOISE[:9000])  # of the old index
    with Store(root) as store:
        assert store.check().problems == ()
        assert {c.id for c in store.contexts()} == whole.keys()


def test_an_index_of_a_newer_version_or_of_another_program_is_left_alone(tmp_path: Path) -> None:
    for name, statement, message in [
        ("newer", "PRAGMA user_version = 99", "newer llmaas"),
        ("foreign", "CREATE TABLE photos (id)", "another program"),
    ]:
        root = tmp_path / name
        root.mkdir()
        con = sqlite3.connect(root / "index.sqlite")
        con.execute(statement)
        con.close()
        before = (root / "index.sqlite").read_bytes()
        with pytest.raises(StoreFailed, match=message):
            Store(root)
        assert (root / "index.sqlite").read_bytes() == before
        assert Store.repair_index(root) is None


def test_an_index_that_another_process_locks_is_a_clear_error_and_goes_on_afterwards(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Store(root) as store:
        store.create_context(row(A))
        other = sqlite3.connect(root / "index.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFailed, match=r"index\.sqlite: database is locked"):
            store.append(A, [Span((1,))], expect=0, now=0.0)
        other.execute("ROLLBACK")
        other.close()
        assert store.append(A, [Span((1,))], expect=0, now=0.0) == 1


def test_a_reader_from_outside_does_not_stop_the_writer(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Store(root, wal_limit=500_000) as store:
        store.create_context(row(A))
        other = sqlite3.connect(root / "index.sqlite", isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT * FROM contexts").fetchall()
        for i in range(20):
            store.append(A, [Span(tuple(range(5000)))], expect=5000 * i, now=0.0)
        other.execute("ROLLBACK")
        other.close()
        assert len(store.tokens(A)) == 100_000
        assert store.check().problems == ()


def test_a_root_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_text("not a folder")
    with pytest.raises(StoreFailed, match="store"):
        Store(path)


# -- a disk that is really full


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MB; skips where mounting is not allowed."""
    path = tmp_path / "tiny"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_really_full_refuses_and_goes_on_when_there_is_room(tiny_disk: Path) -> None:
    root = tiny_disk / "store"
    kept: dict[ChunkKey, bytes] = {}
    with Store(root, reserve=100_000) as store:
        store.create_context(row(A), [Span((1, 2))])
        with pytest.raises(DiskFull, match="100000 kept for tokens"):
            for i in range(100):
                k = key(i)
                store.put(A, [(k, 64, NOISE[i : i + 100_000])])
                kept[k] = NOISE[i : i + 100_000]
        assert 20 < len(kept) < 30
        assert [bytes(v or b"") for v in store.get(list(kept))] == list(kept.values())
        n_tokens = store.append(A, [Span((3,))], expect=2, now=0.0)  # tokens may go on

        ballast = tiny_disk / "ballast"
        with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(DiskFull):
            while True:
                n_tokens = store.append(A, [Span(tuple(range(5000)))], expect=n_tokens, now=0.0)
        with pytest.raises(DiskFull):
            store.create_context(row(B))
        assert len(store.tokens(A)) == n_tokens
        assert store.check().problems == ()

        assert store.discard(list(kept)) > 2_000_000  # even now
        assert store.append(A, [Span((9,))], expect=n_tokens, now=0.0) == n_tokens + 1
        assert store.put(A, [(key("new"), 64, NOISE[:100_000])]) > 100_000
    with Store(root, reserve=0) as store:
        assert len(store.tokens(A)) == n_tokens + 1
        assert bytes(store.get([key("new")])[0] or b"") == NOISE[:100_000]
        assert store.check().problems == ()


def test_opening_on_a_full_disk_says_so_and_works_when_there_is_room(tiny_disk: Path) -> None:
    root = tiny_disk / "store"
    with Store(root) as store:
        store.create_context(row(A), [Span((1, 2))])
    ballast = tiny_disk / "ballast"
    with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(DiskFull):
        Store(root)
    ballast.unlink()
    with Store(root) as store:
        assert list(store.tokens(A)) == [1, 2]


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

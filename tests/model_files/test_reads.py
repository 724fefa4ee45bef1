"""Reading files into the page cache: what is missing, in order, by several threads, within a limit."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.clock import ManualClock
from llmaas.model_files.load_memo import DiskFigures, LoadMemo, ReadPlan
from llmaas.model_files.page_cache import PAGE, missing_bytes, resident_pages, resident_share
from llmaas.model_files.reads import TRIED, Extent, FileReads, ReadQueue, missing_runs

SIZE = 6 << 20


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[Path]:
    """A file of which nothing is in the page cache; skipped where a file system keeps its files in memory."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    drop(path)
    with path.open("rb") as file:
        if resident_share(file) != 0.0:
            pytest.skip("files of this file system are always in memory")
    yield path


def drop(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def share(path: Path) -> float | None:
    with path.open("rb") as file:
        return resident_share(file)


def read(memo: LoadMemo, *paths: Path, limit: int | None = None) -> FileReads:
    reads = FileReads(paths, memo, limit=limit)
    reads.start()
    reads.wait()
    return reads


@pytest.fixture
def memo(tmp_path: Path) -> LoadMemo:
    return LoadMemo(tmp_path / "loads.json")


def test_a_cold_file_is_warm_afterwards(cold: Path, memo: LoadMemo) -> None:
    reads = read(memo, cold)
    assert share(cold) == 1.0
    assert reads.missing == SIZE and reads.n_read == SIZE and not reads.running


def test_what_its_first_thread_is_prepared_with_comes_before_any_read(cold: Path, memo: LoadMemo) -> None:
    seen: list[tuple[str, float | None]] = []
    reads = FileReads([cold], memo, prepare=lambda: seen.append((threading.current_thread().name, share(cold))))
    reads.start()
    reads.wait()
    assert seen == [("reads", 0.0)] and share(cold) == 1.0


def test_a_warm_file_is_not_read_again(cold: Path, memo: LoadMemo) -> None:
    cold.read_bytes()
    reads = read(memo, cold)
    assert (reads.missing, reads.n_read) == (0, 0)


def test_only_what_is_missing_is_read(cold: Path, memo: LoadMemo) -> None:
    with cold.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        os.pread(file.fileno(), 4 * PAGE, 8 * PAGE)
        pages = resident_pages(file)
    assert pages is not None and 0 < pages.count(1) < len(pages)
    reads = read(memo, cold)
    assert reads.missing == SIZE - PAGE * pages.count(1) and share(cold) == 1.0


def test_how_much_is_missing_is_seen_also_of_a_large_file_at_a_few_places(cold: Path) -> None:
    assert missing_bytes(cold) == SIZE
    cold.read_bytes()
    assert missing_bytes(cold) == 0
    with cold.open("ab") as file:
        file.write(os.urandom(4 * SIZE))
    drop(cold)
    assert missing_bytes(cold) == 5 * SIZE
    with cold.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        os.pread(file.fileno(), 5 * SIZE // 2, 0)
    missing = missing_bytes(cold)
    assert missing is not None and 0.4 < missing / (5 * SIZE) < 0.6


def test_no_more_is_read_than_there_is_memory_for(cold: Path, memo: LoadMemo) -> None:
    assert read(memo, cold, limit=1 << 20).n_read == 1 << 20
    drop(cold)
    assert read(memo, cold, limit=0).n_read == 0


def test_several_files_are_read_in_order(cold: Path, tmp_path: Path, memo: LoadMemo) -> None:
    second = tmp_path / "second"
    second.write_bytes(os.urandom(1 << 20))
    drop(second)
    assert read(memo, cold, second).n_read == SIZE + (1 << 20)


def test_files_that_cannot_be_read_are_left_to_whoever_needs_them(tmp_path: Path, memo: LoadMemo) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("gone", "fifo", "."):
        reads = read(memo, tmp_path / name)
        assert reads.missing is None and reads.n_read == 0


def test_a_close_ends_it_soon(cold: Path, memo: LoadMemo) -> None:
    reads = FileReads([cold], memo)
    reads.start()
    reads.close()
    assert not reads.running


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 40), st.none() | st.integers(0, 200))
def test_chunks_are_handed_out_once_in_order_and_within_the_limit(
    lengths: list[int], chunk: int, limit: int | None
) -> None:
    with Path(os.devnull).open("rb") as file:
        extents, at = [], 0
        for length in lengths:
            extents.append(Extent(file, at, at + length))
            at += length + 7
        todo, found = ReadQueue(extents, limit), []
        for most in (3 * chunk, None):
            next_chunk = todo.share(chunk, most)
            while (each := next_chunk()) is not None:
                assert 0 < each.stop - each.start <= chunk
                found += range(each.start, each.stop)
    wanted = [place for extent in extents for place in range(extent.start, extent.stop)]
    assert found == (wanted if limit is None else wanted[:limit])


def test_many_threads_get_each_byte_once() -> None:
    with Path(os.devnull).open("rb") as file:
        next_chunk = ReadQueue([Extent(file, 0, 10_000)]).share(7, None)
        found: list[int] = []
        lock = threading.Lock()

        def take() -> None:
            while (each := next_chunk()) is not None:
                with lock:
                    found.extend(range(each.start, each.stop))

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(range(10_000))


@given(st.lists(st.booleans(), max_size=60))
def test_missing_runs_are_the_pages_that_are_not_there(resident: list[bool]) -> None:
    runs = list(missing_runs(bytes(resident)))
    assert [page for first, last in runs for page in range(first, last)] == [
        page for page, there in enumerate(resident) if not there
    ]
    assert all(end < begin for (_, end), (begin, _) in pairwise(runs))


def test_an_empty_file_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert share(tmp_path / "empty") == 1.0


def test_what_was_learned_of_a_disk_is_kept_as_a_running_mean(memo: LoadMemo) -> None:
    assert memo.disk(7) is None and memo.expected_s("/m", 7, 100) is None
    memo.keep_disk(7, DiskFigures(ReadPlan(4, 4 << 20), 100.0))
    memo.keep_disk(7, DiskFigures(ReadPlan(2, 4 << 20), 200.0))
    assert memo.disk(7) == DiskFigures(ReadPlan(2, 4 << 20), pytest.approx(130.0))
    memo.keep_fixed("/m", 2.0)
    assert memo.expected_s("/m", 7, 260) == pytest.approx(4.0)
    assert memo.expected_s("/m", 9, 0) == pytest.approx(2.0) and memo.expected_s("/m", 9, 1) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"disks": 3}',
        '{"disks": {"7": {"threads": 900, "chunk": 4194304, "rate": 1}}}',
        '{"disks": {"7": {"threads": 2, "chunk": 4194304, "rate": "nan"}}, "models": {"/m": -1}}',
    ],
)
def test_a_damaged_memo_is_an_empty_one(tmp_path: Path, text: str) -> None:
    memo = LoadMemo(tmp_path / "loads.json")
    (tmp_path / "loads.json").write_text(text)
    assert memo.disk(7) is None and memo.fixed_s("/m") is None
    memo.keep_fixed("/m", 1.0)
    memo.keep_disk(7, DiskFigures(TRIED[0], 5.0))
    assert memo.expected_s("/m", 7, 5) == pytest.approx(2.0)


def test_the_best_way_is_tried_out_once_and_kept(tmp_path: Path, memo: LoadMemo) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        for _ in range(6):
            file.write(os.urandom(1 << 20) * 32)
    drop(path)
    if share(path) != 0.0:
        pytest.skip("files of this file system are always in memory")
    assert read(memo, path).n_read == path.stat().st_size
    found = memo.disk(path.stat().st_dev)
    assert found is not None and found.plan in TRIED and found.rate > 1 << 20


def test_how_long_the_rest_takes_is_told_by_what_has_been_read(tmp_path: Path) -> None:
    clock = ManualClock()
    reads = FileReads([], LoadMemo(tmp_path / "memo.json"), clock=clock)
    assert reads.left_s is None
    reads.missing = 100
    assert reads.left_s is None, "nothing has been read"
    clock.advance(2.0)
    reads.n_read = 25
    assert reads.left_s == 6.0
    reads.n_read = 120
    assert reads.left_s == 0.0
    limited = FileReads([], LoadMemo(tmp_path / "memo.json"), limit=50, clock=clock)
    limited.missing, limited.n_read = 100, 25
    clock.advance(1.0)
    assert limited.left_s == 1.0

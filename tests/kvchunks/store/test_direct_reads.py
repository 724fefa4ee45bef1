"""Reading payload files past the page cache: the same bytes, whatever the file system can do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmaas.kvchunks.store.chunk_memory import MOST
from llmaas.kvchunks.store.cipher import KEY_BYTES, MasterKey
from llmaas.kvchunks.store.store import Files, Store
from llmaas.kvchunks.store.syscalls import DIRECT, PAGE
from llmaas.records import ContextId
from tests.support.store_data import key

SIZES = (5000, 1, PAGE, 3 * PAGE + 7, MOST, MOST + 1, 12_345)
KEYS = [key(i) for i in range(len(SIZES))]
DATA = [np.random.default_rng(i).bytes(size) for i, size in enumerate(SIZES)]


class Direct(Files):
    """Nothing is in the page cache, and a file system that takes whole pages only, to and from whole pages."""

    def __init__(self, *, can: bool = True, refuses: int = 0, broken_at: int = -1) -> None:
        self.can, self.refuses, self.broken_at = can, refuses, broken_at
        self.direct: set[int] = set()
        self.n_direct = self.n_cached = 0

    def is_cached(self, fd: int, offset: int, size: int) -> bool:
        return False

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if not flags & DIRECT:
            return super().open(path, flags, mode)
        if not self.can:
            raise OSError(errno.EINVAL, "as the test wants")
        self.direct.add(fd := super().open(path, flags & ~DIRECT, mode))
        return fd

    def end_direct(self, fd: int) -> None:
        self.direct.discard(fd)
        super().end_direct(fd)

    def close(self, fd: int) -> None:
        self.direct.discard(fd)
        super().close(fd)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        if offset <= self.broken_at < offset + len(buffer):
            raise OSError(errno.EIO, "as the test wants")
        if fd not in self.direct:
            self.n_cached += 1
            return super().pread_into(fd, buffer, offset)
        if self.refuses:
            raise OSError(self.refuses, "as the test wants")
        assert np.frombuffer(buffer, np.uint8).ctypes.data % PAGE == len(buffer) % PAGE == offset % PAGE == 0
        self.n_direct += 1
        return super().pread_into(fd, buffer, offset)


def filled(root: Path, files: Files, master: MasterKey | None = None) -> Store:
    store = Store(root, files=files, master=master)
    store.put(ContextId("c"), [(k, 64, chunk) for k, chunk in zip(KEYS, DATA, strict=True)])
    return store


def found(store: Store) -> Iterator[tuple[int, bytes | None]]:
    for i, k in enumerate(KEYS):
        for sealed in store.read(store.places([k]), once=True):
            view = store.open(sealed)
            yield i, None if view is None else bytes(view)


def test_chunks_at_any_place_are_read_past_the_page_cache(root: Path) -> None:
    files = Direct()
    with filled(root, files) as store:
        assert all(chunk == DATA[i] for i, chunk in found(store))
        assert files.n_direct >= len(SIZES) - 2 and files.n_cached >= 1  # one is too large
        assert [bytes(sealed.data or b"") for sealed in store.read(store.places(KEYS[:4]), once=True)] == DATA[:4]
        before = files.n_direct
        assert [bytes(sealed.data or b"") for sealed in store.read(store.places(KEYS))] == DATA
        assert files.n_direct == before


@pytest.mark.parametrize("files", [Direct(can=False), Direct(refuses=errno.EINVAL), Direct(refuses=errno.EOPNOTSUPP)])
def test_a_file_system_that_cannot_do_that_is_read_through_it(root: Path, files: Direct) -> None:
    with filled(root, files) as store:
        assert all(chunk == DATA[i] for i, chunk in found(store))
        assert files.n_direct == 0 and files.n_cached >= len(SIZES)


def test_a_bad_sector_costs_the_chunks_on_its_page_only(root: Path) -> None:
    files = Direct()
    with filled(root, files) as store:
        files.broken_at = sum(SIZES[:5]) + 2 * PAGE
        read = store.read(store.places(KEYS[4:]), once=True)
        assert [sealed.data is None for sealed in read] == [False, True, False]
        assert [i for i, chunk in found(store) if chunk is None] == [5] and store.stats().damaged == 1


def test_a_file_that_is_cut_short_has_the_chunks_before_the_cut(root: Path) -> None:
    with filled(root, Direct()) as store:
        with next(root.glob("payload/*.kv")).open("r+b") as file:
            file.truncate(sum(SIZES[:4]) + 10)
        assert [i for i, chunk in found(store) if chunk is None] == [4, 5, 6]


def test_what_has_just_been_written_is_in_the_page_cache_until_it_is_evicted(tmp_path: Path) -> None:
    class Watched(Files):
        asked: list[bool]

        def is_cached(self, fd: int, offset: int, size: int) -> bool:
            self.asked.append(super().is_cached(fd, offset, size))
            return self.asked[-1]

    files = Watched()
    files.asked = []
    with filled(tmp_path / "store", files) as store:
        assert all(chunk == DATA[i] for i, chunk in found(store)) and all(files.asked)
        store.evict_page_cache()
        files.asked.clear()
        assert all(chunk == DATA[i] for i, chunk in found(store))
        if all(files.asked):
            pytest.skip("this file system keeps its files in memory")
        assert not any(files.asked[:4])  # reading large ones through the page cache reads ahead


@pytest.mark.parametrize("system", [sys.platform, "an older kernel"])
def test_what_is_in_the_page_cache_is_told_by_the_newest_call_and_the_oldest(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    path, size, files = tmp_path / "file", 64 * PAGE, Files()
    path.write_bytes(bytes(size))
    fd = files.open(path, os.O_RDWR)
    try:
        assert files.is_cached(fd, 0, size) and files.is_cached(fd, 5 * PAGE + 7, 10_000)
        files.fdatasync(fd)
        files.drop_cached(fd)
        if files.is_cached(fd, 0, size):
            pytest.skip("this file system keeps its files in memory")
        assert not files.is_cached(fd, 5 * PAGE + 7, 10_000)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        os.pread(fd, 16 * PAGE, 0)
        assert files.is_cached(fd, 0, 16 * PAGE) and files.is_cached(fd, 0, 24 * PAGE)
        assert not files.is_cached(fd, 0, size) and not files.is_cached(fd, 16 * PAGE, 16 * PAGE)
    finally:
        files.close(fd)


def test_a_file_that_is_read_past_the_page_cache_can_be_read_through_it_again(root: Path) -> None:
    class Cached(Files):
        opened: list[int]

        def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
            self.opened.append(flags)
            return super().open(path, flags, mode)

        def is_cached(self, fd: int, offset: int, size: int) -> bool:
            return True

    files = Cached()
    files.opened = []
    with filled(root, files) as store:
        files.opened.clear()
        assert all(chunk == DATA[i] for i, chunk in found(store))
    assert all(flags & DIRECT for flags in files.opened[: len(DATA)])


def test_what_is_encrypted_is_decrypted_where_it_was_read_and_once(root: Path) -> None:
    files = Direct()
    with filled(root, files, MasterKey(bytes(KEY_BYTES))) as store:
        read = store.read(store.places(KEYS[:4]), once=True)
        chunks = [store.open(sealed) for sealed in read]
        assert [bytes(chunk or b"") for chunk in chunks] == DATA[:4] and files.n_cached == 0
        for sealed, chunk in zip(read, chunks, strict=True):
            begin = np.frombuffer(chunk, np.uint8).ctypes.data - np.frombuffer(sealed.data, np.uint8).ctypes.data
            assert 0 < begin < len(sealed.data or b"") - len(chunk or b"")
        assert [bytes(store.open(sealed) or b"") for sealed in read] == DATA[:4]  # those are read anew
        assert files.n_cached and [bytes(chunk or b"") for chunk in chunks] == DATA[:4] and not store.stats().damaged


def test_a_chunk_that_was_altered_on_disk_costs_none_of_those_read_with_it(root: Path) -> None:
    with filled(root, Direct(), MasterKey(bytes(KEY_BYTES))) as store:
        place = store.places(KEYS[1:2])[0]
        with next(root.glob("payload/*.kv")).open("r+b") as file:
            file.seek(place.offset + place.nbytes - 1)
            last = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([last ^ 1]))
        chunks = [store.open(sealed) for sealed in store.read(store.places(KEYS[:4]), once=True)]
        assert [None if chunk is None else bytes(chunk) for chunk in chunks] == [DATA[0], None, *DATA[2:4]]

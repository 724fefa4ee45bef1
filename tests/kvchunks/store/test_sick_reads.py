"""Reading while the disk fails, or others change the store: never another chunk's bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.store import Files, Store
from tests.support.store_data import BIG, SMALL, A, items


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

"""Opens a damaged index for reading even if its first page, which tells SQLite all else, is damaged.

Law: the damaged file is only read. Its first page holds the header and the texts of all tables, and these are the same
in every index of one version, so a copy of the file gets the first page of a new index. The tables of contexts and
spans are where they are in every index, since they are made first. Others may be elsewhere if the index was migrated
from an older version, or written anew; what is read of them then makes no sense, and is dropped.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.schema import VERSION
from llmaas.kvchunks.store.soundness import check_header, find_version
from llmaas.kvchunks.store.sums import tolerant_text

PARTS = ("-wal", "-shm", "")
"""Endings of the files of a database; the database itself comes last."""
_PAGE_SIZE = slice(16, 18)
_N_PAGES = slice(28, 32)


@contextmanager
def readable(damaged: Path, new: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads ``damaged``. ``new`` is an empty index of this version.

    Raises sqlite3.DatabaseError if SQLite cannot read it at all.
    """
    if _is_intact(damaged):
        with closing(_reader(damaged)) as con:
            yield con
        return
    copy = copy_of(damaged)
    try:
        for part in PARTS:
            source = damaged.with_name(damaged.name + part)
            if source.exists():
                shutil.copy(source, copy.with_name(copy.name + part))  # with its mode
        _transplant(new, copy)
        with closing(_reader(copy)) as con:
            con.execute("SELECT count(*) FROM contexts NOT INDEXED LIMIT 0").fetchall()  # reads the tables' texts
            yield con
    finally:
        for part in PARTS:
            copy.with_name(copy.name + part).unlink(missing_ok=True)


def copy_of(path: Path) -> Path:
    """Where the copy of a damaged index is while it is read."""
    return path.with_name(path.name + ".copy")


def _is_intact(path: Path) -> bool:
    try:
        check_header(path)
        with closing(_reader(path)) as con:
            return 0 < find_version(con, path) <= VERSION
    except (sqlite3.DatabaseError, StoreFailed, UnicodeDecodeError):
        return False


def _reader(path: Path) -> sqlite3.Connection:
    """A read-only connection, so that not even the log is copied into the database."""
    con = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    con.text_factory = tolerant_text
    con.execute("PRAGMA cell_size_check = ON")
    return con


def _transplant(new: Path, into: Path) -> None:
    """Give the index ``into`` the first page of ``new``."""
    with new.open("rb") as file:
        page_size = int.from_bytes(file.read(_PAGE_SIZE.stop)[_PAGE_SIZE], "big")
        page_size = 1 << 16 if page_size == 1 else page_size
        file.seek(0)
        page = bytearray(file.read(page_size))
    page[_N_PAGES] = (into.stat().st_size // page_size).to_bytes(4, "big")
    with into.open("r+b") as file:
        file.write(page)

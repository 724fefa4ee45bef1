"""Whether the index is sound as a database: its header, its tables, its pages.

Law: reads only. What is asked here is what SQLite itself relies on; what the rows say is checked by their checksums.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from functools import cache
from pathlib import Path

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.schema import VERSION, migrate, user_version
from llmaas.kvchunks.store.syscalls import IndexDamaged

log = logging.getLogger(__name__)

HEADER_BYTES = 100
_LARGEST_FORMAT = 4
_LARGEST_WRITE_VERSION = 2
_VALUE = re.compile(
    r"(NULL|TEXT|NUMERIC|non-\w+) value in \w+\.\w+|CHECK constraint failed in \w+|\*\*\* in database main \*\*\*"
)
"""What SQLite says of a single value, which is no fault of the structure."""

Tables = frozenset[tuple[str, str, str, str]]
"""Type, name, table and text of each table and index, as SQLite keeps them."""


def check_header(path: Path) -> None:
    """Raises IndexDamaged if the file's first bytes would make SQLite refuse it with a message that does not say so.

    The fields are those of https://www.sqlite.org/fileformat2.html, 1.3. A file that is empty or shorter is SQLite's
    affair. To be called before SQLite opens the file: closing it would end SQLite's locks.
    """
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return
    schema_format = int.from_bytes(header[44:48], "big")
    if header[18] > _LARGEST_WRITE_VERSION or schema_format > _LARGEST_FORMAT:
        raise IndexDamaged(f"{path} is damaged: its header is impossible")


def structure(con: sqlite3.Connection) -> list[str]:
    """What is wrong with the database's pages. Reads all of them."""
    lines = [line for row in con.execute("PRAGMA quick_check") for line in str(row[0]).splitlines()]
    return [line for line in lines if line != "ok" and not _VALUE.fullmatch(line)]


def soundness(con: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the database: problems of pages, indexes, constraints and references."""
    problems = [f"index: {row[0]}" for row in con.execute("PRAGMA integrity_check") if row[0] != "ok"]
    problems += [
        f"index: a row of {row[0]} refers to a missing row of {row[2]}"
        for row in con.execute("PRAGMA foreign_key_check")
    ]
    return problems


def find_version(con: sqlite3.Connection, path: Path) -> int:
    """The version of the schema; 0 for an empty database, and above ``VERSION`` if it is newer.

    The tables tell it, too: a damaged version number is told from a true one. Raises IndexDamaged if tables are not
    what they must be, StoreFailed for a database of another program.
    """
    said, found = user_version(con), tables_of(con)
    # More tables than ours are no harm: somebody may have made an index of his own. All those of the next version are.
    is_later = 0 < said < VERSION and tables_of_version(said + 1) <= found
    if 0 < said <= VERSION and tables_of_version(said) <= found and not is_later:
        return said
    version = next((v for v in range(VERSION + 1) if tables_of_version(v) == found), None)
    if version is not None and (version or not said):
        if version != said:
            log.error("%s says that its schema is version %d, but its tables are those of %d", path, said, version)
        return version
    if said > VERSION:
        return said
    if not {name for _, name, _, _ in found} & {name for _, name, _, _ in tables_of_version(VERSION)} and found:
        raise StoreFailed(f"{path} is a database of another program", hint="Use another store folder.")
    raise IndexDamaged(f"{path} is damaged: its tables are not those of schema version {said}")


def tables_of(con: sqlite3.Connection) -> Tables:
    """The tables and indexes of a database, but for the statistics that SQLite may keep."""
    rows = con.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%'")
    return frozenset((str(row[0]), str(row[1]), str(row[2]), _squeezed(str(row[3]))) for row in rows)


@cache
def tables_of_version(version: int) -> Tables:
    """What ``tables_of`` finds in a new database of that version."""
    con = sqlite3.connect(":memory:", isolation_level=None)
    for step in range(version):
        migrate(con, step)
    found = tables_of(con)
    con.close()
    return found


def _squeezed(sql: str) -> str:
    """Without what makes no difference."""
    return "".join(sql.split()).lower()

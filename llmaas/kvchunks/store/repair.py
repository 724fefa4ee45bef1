"""Repairs a damaged index: puts a new one, with what can still be read, in its place, and moves the old one aside.

Law: the damaged file is never changed or deleted. It is replaced when all that can be read of it is safely in the new
one; a kill at any moment leaves the old index or the new one.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.lock import RootLock
from llmaas.kvchunks.store.reports import Salvage
from llmaas.kvchunks.store.salvage import read_damaged
from llmaas.kvchunks.store.schema import INDEX, VERSION, soundness, user_version
from llmaas.kvchunks.store.syscalls import Files, failures, is_corrupt

_PARTS = ("-wal", "-shm", "")


def repair(root: Path) -> Salvage | None:
    """See ``Store.repair_index``."""
    files, path = Files(), root / INDEX
    lock = RootLock(root, files)
    try:
        with failures(path):
            return _salvage(path, files) if _is_damaged(path, files) else None
    finally:
        lock.close()


def _is_damaged(path: Path, files: Files) -> bool:
    if not path.exists():
        raise StoreFailed(f"{path}: there is no index")
    con = files.connect(path)
    try:
        if user_version(con) > VERSION:
            return False  # whatever is wrong with it: an index of this version could not hold all of it
        return bool(soundness(con))
    except sqlite3.Error as error:
        if is_corrupt(error):
            return True
        raise
    finally:
        con.close()


def _salvage(path: Path, files: Files) -> Salvage:
    new = _new(path)
    _remove(new)
    found = read_damaged(path)
    index = Index(new, files, wal_limit=1 << 20)
    try:
        with index.write(durable=True) as txn:
            kept, shortened = found.write(txn.con)
    finally:
        index.close()
    moved = _move_aside(path)
    finish(path, files)
    return Salvage(moved, kept, shortened, found.lost())


def finish(path: Path, files: Files) -> None:
    """Finish a replacement that a kill cut short: only then is there a new index and no old one. Raises OSError."""
    if _new(path).exists() and not path.exists():
        _remove(path)  # a log that the kill kept from being moved: SQLite would take it for the new index's
        _new(path).rename(path)
        files.sync_folder(path.parent)


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _remove(path: Path) -> None:
    for suffix in _PARTS:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _move_aside(path: Path) -> Path:
    """Rename a damaged index, with its log, to the first free ``<name>.corrupt-N``. Returns that path.

    The log keeps its suffix, so that ``sqlite3 <moved> .recover`` still finds it. The database goes first: while it is
    there, so is its log.
    """
    n = 1
    while (target := path.with_name(f"{path.name}.corrupt-{n}")).exists():
        n += 1
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(target.with_name(target.name + suffix))
    return target

"""Repairs a damaged index: puts a new one, with what can still be read, in its place, and moves the old one aside.

Law: the damaged file is never changed or deleted. It is replaced when all that can be read of it is safely in the new
one; a kill at any moment leaves the old index or the new one.
"""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from pathlib import Path

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.lock import RootLock
from llmaas.kvchunks.store.move_rows import take_moves
from llmaas.kvchunks.store.opening import prepare_reader
from llmaas.kvchunks.store.page_one import PARTS, copy_of, readable
from llmaas.kvchunks.store.reports import Damage, Salvage
from llmaas.kvchunks.store.salvage import ConversationSalvage, Rescued
from llmaas.kvchunks.store.salvage_chunks import take_adapters, take_chunks
from llmaas.kvchunks.store.schema import INDEX, VERSION
from llmaas.kvchunks.store.soundness import check_header, find_version, soundness
from llmaas.kvchunks.store.syscalls import Files, IndexDamaged, failures, is_corrupt
from llmaas.kvchunks.store.text_seal import IN_CLEAR, Sealing
from llmaas.kvchunks.store.ttl_rows import take_ttls
from llmaas.kvchunks.store.turn_rows import take_turns
from llmaas.kvchunks.store.verify import row_problems


def repair(root: Path, sealing: Sealing, *, only_whole: bool = False) -> Salvage | None:
    """See ``Store.repair_index``."""
    files, path = Files(), root / INDEX
    lock = RootLock(root, files)
    try:
        with failures(path):
            return _salvage(path, files, sealing, only_whole) if _is_damaged(path, files) else None
    finally:
        lock.close()


def _is_damaged(path: Path, files: Files) -> bool:
    if not path.exists():
        raise StoreFailed(f"{path}: there is no index")
    try:
        check_header(path)
        con = files.connect(path)
        try:
            prepare_reader(con)
            version = find_version(con, path)
            if version > VERSION:
                return False  # whatever is wrong with it: an index of this version could not hold all of it
            if soundness(con):
                return True
        finally:
            con.close()
    except (IndexDamaged, UnicodeDecodeError):  # the second: a message of SQLite's that quotes damaged text
        return True
    except StoreFailed:  # of another program
        return False
    except sqlite3.Error as error:
        if is_corrupt(error):
            return True
        raise
    return _has_bad_rows(path, files)


def _has_bad_rows(path: Path, files: Files) -> bool:
    """Whether conversations are damaged in a sound index, which is brought up to this version first."""
    index = Index(path, files, wal_limit=1 << 20)
    try:
        with index.read() as con:
            return any(problem.kind is Damage.ROW for problem in row_problems(con, IN_CLEAR))
    finally:
        index.close()


def _salvage(path: Path, files: Files, sealing: Sealing, only_whole: bool) -> Salvage:
    new = _new(path)
    _remove(new)
    Index(new, files, wal_limit=1 << 20).close()
    with ExitStack() as stack:
        try:
            old = stack.enter_context(readable(path, new))
        except sqlite3.DatabaseError:  # nothing of it can be read: contexts start anew
            found, adapters_lost, whole = Rescued(), 0, False
        else:
            found, adapters_lost = _copy(old, new, files, sealing)
            whole = not (found.shortened or found.lost or found.locked or adapters_lost)
    if only_whole and not whole:
        _remove(new)
        raise IndexDamaged(f"{path} is damaged, and not all that it held can be read")
    moved = _move_aside(path)
    finish(path, files)
    return Salvage(moved, found.contexts, tuple(found.shortened), tuple(found.mended), found.lost, adapters_lost)


def _copy(old: sqlite3.Connection, new: Path, files: Files, sealing: Sealing) -> tuple[Rescued, int]:
    """Take everything that is right into the index ``new``. Returns what became of conversations, and adapters lost."""
    index = Index(new, files, wal_limit=1 << 20)
    try:
        with index.write(durable=True) as txn:
            found = ConversationSalvage(old, txn.con, sealing).run()
            adapters_lost = take_adapters(old, txn.con)
            take_turns(old, txn.con)
            take_ttls(old, txn.con)
            take_moves(old, txn.con)
            take_chunks(old, txn.con)
    finally:
        index.close()
    return found, adapters_lost


def finish(path: Path, files: Files) -> None:
    """Finish a replacement that a kill cut short: only then is there a new index and no old one. Raises OSError."""
    if _new(path).exists() and not path.exists():
        _remove(path)  # a log that the kill kept from being moved: SQLite would take it for the new index's
        _new(path).rename(path)
        files.sync_folder(path.parent)
    elif path.exists():
        _remove(_new(path))  # and what a repair that was killed has copied, which may be in clear
        _remove(copy_of(path))


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _remove(path: Path) -> None:
    for suffix in PARTS:
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

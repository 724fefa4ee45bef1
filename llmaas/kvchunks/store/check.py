"""Looking the store over: the quick sweep at every opening, and the thorough ``check``.

Law: what is dropped is only ever a chunk's row, a payload file that no row names, or a wrong count; tokens, never.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llmaas.errors import MachineError, StoreFailed
from llmaas.kvchunks.store.chunks import Chunks, checksum
from llmaas.kvchunks.store.data_keys import DataKeys
from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.payload_files import PayloadFiles, is_payload_name
from llmaas.kvchunks.store.rows import CheckReport, Damage, Place, Problem
from llmaas.kvchunks.store.schema import soundness
from llmaas.records import ChunkKey

log = logging.getLogger(__name__)


def sweep(index: Index, payload: PayloadFiles) -> int:
    """Set right what a kill or a power cut leaves behind; chunks lost by it.

    A kill leaves files that no row names; a power cut also rows whose file is missing or too short. Costs one
    ``stat`` per file and a pass over the chunk table.
    """
    sizes = payload.sizes()
    with index.read() as con:
        ends = con.execute(
            "SELECT id, max(offset + nbytes) FROM files LEFT JOIN chunks ON file = id GROUP BY id"
        ).fetchall()
    freed = sum(payload.unlink(file) for file in sizes.keys() - {file for file, _ in ends})
    if freed:
        log.info("swept %d bytes of payload that a crash left", freed)
    short = [(file, sizes.get(file, 0)) for file, end in ends if end is None or end > sizes.get(file, 0)]
    if not short:
        return 0
    try:
        with index.write(durable=False) as txn:
            lost = txn.con.executemany("DELETE FROM chunks WHERE file = ? AND offset + nbytes > ?", short).rowcount
            txn.con.execute("DELETE FROM files WHERE id NOT IN (SELECT file FROM chunks)")
    except MachineError as error:  # a full disk must not keep the store closed; get() finds these chunks too
        log.warning("rows of lost chunks stay: %s", error)
        return 0
    for file, _ in short:
        if file not in _numbers(index):
            payload.unlink(file)
    log.warning("%d chunks were lost in a crash; they will be recomputed", lost)
    return lost


def _numbers(index: Index) -> set[int]:
    with index.read() as con:
        return {row[0] for row in con.execute("SELECT id FROM files")}


@dataclass(slots=True)
class _Findings:
    """What was seen, what is wrong with it, and how to mend that."""

    problems: list[Problem] = field(default_factory=list)
    contexts: int = 0
    places: list[Place] = field(default_factory=list)
    """Where every chunk is."""
    bad: list[Place] = field(default_factory=list)
    mends: list[Callable[[], object]] = field(default_factory=list)

    n_tokens: dict[ChunkKey, int] = field(default_factory=dict)

    def note(self, kind: Damage, text: str, mend: Callable[[], object] | None = None) -> None:
        self.problems.append(Problem(kind, text))
        if mend is not None:
            self.mends.append(mend)

    def note_bad(self, kind: Damage, text: str, place: Place) -> None:
        text = f"chunk {place.key.hex()}: {text}"
        self.problems.append(Problem(kind, text, self.n_tokens[place.key]))
        self.bad.append(place)


def check(
    root: Path, index: Index, payload: PayloadFiles, chunks: Chunks, keys: DataKeys, *, deep: bool, repair: bool
) -> CheckReport:
    """See ``Store.check``. Appends of tokens go on meanwhile; puts and discards wait."""
    found = _Findings()
    with chunks.still():
        try:
            _check_index(index, found)
            _check_tokens(index, found)
            _check_places(index, payload, found)
            if deep:
                _check_bytes(index, payload, keys, found)
            _check_modes(root, found)
        except StoreFailed as error:  # so damaged that it cannot be looked at
            found.note(Damage.INDEX, error.message)
            return CheckReport(tuple(found.problems), found.contexts, len(found.places))
        if repair:
            chunks.drop(found.bad)
            for mend in found.mends:
                mend()
    return CheckReport(tuple(found.problems), found.contexts, len(found.places), repaired=repair)


def _check_index(index: Index, found: _Findings) -> None:
    with index.read() as con:
        for problem in soundness(con):
            found.note(Damage.INDEX, problem)


def _check_tokens(index: Index, found: _Findings) -> None:
    with index.read() as con:
        found.contexts = con.execute("SELECT count(*) FROM contexts").fetchone()[0]
        wrong = con.execute(
            "SELECT num, contexts.id, n_tokens, coalesce(sum(length(tokens)), 0) / 4 AS n FROM contexts"
            " LEFT JOIN spans ON context = num GROUP BY num HAVING n != n_tokens"
        ).fetchall()
    for num, ctx, said, counted in wrong:
        text = f"context {ctx}: {counted} tokens, but counted as {said}"
        found.note(Damage.COUNT, text, partial(_recount, index, num))


def _recount(index: Index, num: int) -> None:
    with index.write(durable=True) as txn:
        txn.con.execute(
            "UPDATE contexts SET n_tokens ="
            " (SELECT coalesce(sum(length(tokens)), 0) / 4 FROM spans WHERE context = num) WHERE num = ?",
            (num,),
        )


def _check_places(index: Index, payload: PayloadFiles, found: _Findings) -> None:
    """Every row inside its file, no two at one place, no file without rows, no row without a file."""
    with index.read() as con:
        rows = con.execute(
            "SELECT key, file, offset, nbytes, seal, n_tokens FROM chunks LEFT JOIN files ON files.id = file"
            " ORDER BY file, offset"
        ).fetchall()
        found.places = [Place(*row[:5]) for row in rows]
        found.n_tokens = {row[0]: row[5] for row in rows}
        named = {row[0] for row in con.execute("SELECT id FROM files")}
    sizes = payload.sizes()
    before: Place | None = None
    for place in found.places:
        if place.file not in sizes:
            found.note_bad(Damage.MISSING, f"{payload.path(place.file)} is missing", place)
        elif place.end > sizes[place.file]:
            found.note_bad(Damage.SHORT, f"{payload.path(place.file)} ends before it", place)
        elif before and before.file == place.file and before.end > place.offset:
            found.note_bad(Damage.OVERLAP, f"overlaps chunk {before.key.hex()}", place)
        before = place
    for file in sorted(sizes.keys() - named):
        found.note(Damage.STRAY, f"{payload.path(file)}: no row names it", partial(payload.unlink, file))
    for file in sorted(named - {place.file for place in found.places}):
        text = f"{payload.path(file)}: has a row but no chunks"
        found.note(Damage.EMPTY, text, partial(_forget_file, index, payload, file))


def _forget_file(index: Index, payload: PayloadFiles, file: int) -> None:
    with index.write(durable=False) as txn:
        txn.con.execute("DELETE FROM files WHERE id = ?", (file,))
    payload.unlink(file)


def _check_bytes(index: Index, payload: PayloadFiles, keys: DataKeys, found: _Findings) -> None:
    """Every chunk that has passed so far against its checksum; and those whose key can be had must open."""
    bad = set(found.bad)
    with index.read() as con:
        sums = {row[0]: row[1] for row in con.execute("SELECT key, checksum FROM chunks")}
    for place, view in payload.read([place for place in found.places if place not in bad]):
        if view is None:
            found.note_bad(Damage.UNREADABLE, f"{payload.path(place.file)} cannot be read there", place)
        elif checksum(view) != sums[place.key]:
            found.note_bad(Damage.FLIPPED, f"its bytes in {payload.path(place.file)} are not those written", place)
        elif keys.usable(place) and keys.open(place, view) is None:
            found.note_bad(Damage.FLIPPED, "it does not open with its context's key", place)


def _check_modes(root: Path, found: _Findings) -> None:
    """The folders and files are the owner's alone; the payload folder holds payload files only."""
    folder = root / "payload"
    for path in [root, folder, *sorted(root.glob("index.sqlite*")), root / "lock", *sorted(folder.iterdir())]:
        if path.parent == folder and not is_payload_name(path.name):
            found.note(Damage.FOREIGN, f"{path}: does not belong here")
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            mend = partial(path.chmod, 0o700 if path.is_dir() else 0o600)
            found.note(Damage.MODE, f"{path}: mode {mode:04o} lets others in", mend)

"""Checks the store for damage: the quick sweep at every opening, and the thorough ``check``.

Law: a repair drops rows of chunks and payload files that no row names, and corrects counts; it never drops tokens.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llmaas.errors import MachineError, StoreFailed
from llmaas.kvchunks.store.chunk_rows import drop_impossible
from llmaas.kvchunks.store.chunk_table import ChunkTable
from llmaas.kvchunks.store.chunks import Chunks
from llmaas.kvchunks.store.contexts import copy_key, recount
from llmaas.kvchunks.store.data_keys import DataKeys
from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.payload_files import PayloadFiles, checksum, is_payload_name
from llmaas.kvchunks.store.reports import CheckReport, Damage, Problem
from llmaas.kvchunks.store.rows import Place
from llmaas.kvchunks.store.soundness import soundness
from llmaas.kvchunks.store.text_seal import Sealing
from llmaas.kvchunks.store.ttl_rows import forget_ttl
from llmaas.kvchunks.store.turn_rows import drop_turns
from llmaas.kvchunks.store.verify import row_problems
from llmaas.records import ChunkKey

log = logging.getLogger(__name__)


def sweep(index: Index, payload: PayloadFiles) -> int:
    """Clean up what a kill or a power cut leaves behind. Returns how many chunks were lost by it.

    A kill leaves files that no row names; a power cut also rows whose file is missing or too short. Costs one ``stat``
    per file and two passes over the chunk table. Rows with impossible values go, too.
    """
    impossible = drop_impossible(index)
    sizes = payload.sizes()
    with index.read() as con:
        ends = con.execute(
            "SELECT id, max(offset + nbytes) FROM files LEFT JOIN chunks ON file = id GROUP BY id"
        ).fetchall()
    freed = sum(payload.unlink(file) for file in sizes.keys() - {file for file, _ in ends})
    if freed:
        log.info("deleted %d bytes of payload that a crash left", freed)
    short = [(file, sizes.get(file, 0)) for file, end in ends if end is None or end > sizes.get(file, 0)]
    return impossible + (_drop_lost(index, payload, short) if short else 0)


def _drop_lost(index: Index, payload: PayloadFiles, short: list[tuple[int, int]]) -> int:
    """Drop the chunks beyond the end of files; ``short`` has each file's number and bytes. Returns how many."""
    try:
        with index.write(durable=False) as txn:
            lost = txn.con.executemany("DELETE FROM chunks WHERE file = ? AND offset + nbytes > ?", short).rowcount
            txn.con.execute("DELETE FROM files WHERE id NOT IN (SELECT file FROM chunks)")
    except MachineError as error:  # a full disk must not keep the store closed; get() finds these chunks too
        log.warning("rows of lost chunks stay: %s", error)
        return 0
    for file, _ in short:
        if file not in _file_numbers(index):
            payload.unlink(file)
    log.warning("%d chunks were lost in a crash; they will be recomputed", lost)
    return lost


def _file_numbers(index: Index) -> set[int]:
    with index.read() as con:
        return {row[0] for row in con.execute("SELECT id FROM files")}


@dataclass(slots=True)
class _Findings:
    """What a check has found so far, and what mends it."""

    problems: list[Problem] = field(default_factory=list)
    mends: list[Callable[[], object]] = field(default_factory=list)
    """Actions that mend the problems, apart from those of chunks."""
    contexts: int = 0
    places: list[Place] = field(default_factory=list)
    """Every chunk in the index."""
    n_tokens: dict[ChunkKey, int] = field(default_factory=dict)
    bad: list[Place] = field(default_factory=list)
    """Chunks to drop."""

    def add(self, kind: Damage, text: str, mend: Callable[[], object] | None = None) -> None:
        self.problems.append(Problem(kind, text))
        if mend is not None:
            self.mends.append(mend)

    def add_bad_chunk(self, kind: Damage, text: str, place: Place) -> None:
        text = f"chunk {place.key.hex()}: {text}"
        self.problems.append(Problem(kind, text, self.n_tokens[place.key]))
        self.bad.append(place)


def check(
    root: Path,
    index: Index,
    payload: PayloadFiles,
    chunks: Chunks,
    keys: DataKeys,
    sealing: Sealing,
    *,
    deep: bool,
    repair: bool,
) -> CheckReport:
    """See ``Store.check``. Tokens can be appended meanwhile; puts and discards wait."""
    found = _Findings()
    with chunks.frozen() as drop:
        try:
            _check_index(index, found)
            _check_rows(index, sealing, found)
            _check_places(index, payload, found)
            _check_meta(index, found)
            if deep:
                _check_bytes(index, payload, keys, found)
            _check_modes(root, found)
        except StoreFailed as error:  # so damaged that the rest cannot be checked
            found.add(Damage.INDEX, error.message)
            return CheckReport(tuple(found.problems), found.contexts, len(found.places))
        if repair:
            drop(found.bad)
            for mend in found.mends:
                mend()
    return CheckReport(tuple(found.problems), found.contexts, len(found.places), repaired=repair)


def _check_index(index: Index, found: _Findings) -> None:
    with index.read() as con:
        for problem in soundness(con):
            found.add(Damage.INDEX, problem)


def _check_rows(index: Index, sealing: Sealing, found: _Findings) -> None:
    """Every row of a conversation is what was written, and every context has as many tokens as it says."""
    with index.read() as con:
        found.contexts = con.execute("SELECT count(*) FROM contexts").fetchone()[0]
        for problem in row_problems(con, sealing):
            mend: Callable[[], object] | None = None
            if problem.kind is Damage.COUNT:
                mend = partial(recount, index, problem.num)
            elif problem.kind is Damage.TURN:
                mend = partial(_forget_keys, index, problem.num, problem.turns)
            elif problem.kind is Damage.TTL:
                mend = partial(_forget_ttl, index, problem.num)
            elif problem.kind is Damage.KEY:
                mend = partial(copy_key, index, problem.num)
            found.add(problem.kind, problem.text, mend)


def _forget_keys(index: Index, num: int, turns: Sequence[int]) -> None:
    with index.write(durable=True) as txn:
        drop_turns(txn.con, num, turns)


def _forget_ttl(index: Index, num: int) -> None:
    with index.write(durable=True) as txn:
        forget_ttl(txn.con, num)


def _check_places(index: Index, payload: PayloadFiles, found: _Findings) -> None:
    """Every chunk is inside its file, no two overlap, and there is no file without rows, nor a row without a file."""
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
            found.add_bad_chunk(Damage.MISSING, f"{payload.path(place.file)} is missing", place)
        elif place.end > sizes[place.file]:
            found.add_bad_chunk(Damage.SHORT, f"{payload.path(place.file)} ends before it", place)
        elif before and before.file == place.file and before.end > place.offset:
            found.add_bad_chunk(Damage.OVERLAP, f"overlaps chunk {before.key.hex()}", place)
        before = place
    for file in sorted(sizes.keys() - named):
        found.add(Damage.STRAY, f"{payload.path(file)}: no row names it", partial(payload.unlink, file))
    for file in sorted(named - {place.file for place in found.places}):
        text = f"{payload.path(file)}: has a row but no chunks"
        found.add(Damage.EMPTY, text, partial(_forget_file, index, payload, file))


def _check_meta(index: Index, found: _Findings) -> None:
    """What is known of chunks besides their places is possible."""
    table = ChunkTable(index)
    wrong = [(row.key, row.meta) for row in table.rows() if not row.meta_is_right]

    def mend() -> None:
        with index.write(durable=False) as txn:
            table.set_meta(txn, wrong)

    for key, _ in wrong:
        found.add(Damage.META, f"chunk {key.hex()}: its bits or sensitivity are out of range")
    if wrong:
        found.mends.append(mend)


def _forget_file(index: Index, payload: PayloadFiles, file: int) -> None:
    with index.write(durable=False) as txn:
        txn.con.execute("DELETE FROM files WHERE id = ?", (file,))
    payload.unlink(file)


def _check_bytes(index: Index, payload: PayloadFiles, keys: DataKeys, found: _Findings) -> None:
    """Every chunk that has passed so far matches its checksum, and decrypts if its key can be had."""
    bad = set(found.bad)
    with index.read() as con:
        sums = {row[0]: row[1] for row in con.execute("SELECT key, checksum FROM chunks")}
    for place, view in payload.read([place for place in found.places if place not in bad]):
        if view is None:
            found.add_bad_chunk(Damage.UNREADABLE, f"{payload.path(place.file)} cannot be read there", place)
        elif checksum(view) != sums[place.key]:
            found.add_bad_chunk(Damage.FLIPPED, f"its bytes in {payload.path(place.file)} are not those written", place)
        elif keys.usable(place) and keys.decrypt(place, view) is None:
            found.add_bad_chunk(Damage.FLIPPED, "it does not open with its context's key", place)


def _check_modes(root: Path, found: _Findings) -> None:
    """Only the owner may access folders and files, and the payload folder holds payload files only."""
    folder = root / "payload"
    for path in [root, folder, *sorted(root.glob("index.sqlite*")), root / "lock", *sorted(folder.iterdir())]:
        if path.parent == folder and not is_payload_name(path.name):
            found.add(Damage.FOREIGN, f"{path}: does not belong here")
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            mend = partial(path.chmod, 0o700 if path.is_dir() else 0o600)
            found.add(Damage.MODE, f"{path}: mode {mode:04o} lets others in", mend)

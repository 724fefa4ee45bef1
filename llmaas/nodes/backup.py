"""Backs all contexts of an app up, and restores them.

Law: an archive is whole and on disk before the index of its folder knows it. A second backup writes what has changed
since, and chunks that are in no archive of the folder. What the daemon made for stateless requests is left out.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from llmaas.errors import BadRequest, CallerError, ChunkDamaged, MachineError
from llmaas.kvchunks.codec.header import read_header
from llmaas.kvchunks.keys import chunk_keys, tail_keys
from llmaas.kvchunks.store.tokens import unpack
from llmaas.nodes import backup_index
from llmaas.nodes.archive.blocks import Sink
from llmaas.nodes.archive.reader import Item, Lost, ReadSpans
from llmaas.nodes.archive.records import ChunkRecord
from llmaas.nodes.archive.writer import ArchiveWriter
from llmaas.nodes.backup_index import BackupIndex
from llmaas.nodes.export import ExportingClient, export_context
from llmaas.nodes.importing import ArchiveImport, OpenContext, Outcome
from llmaas.records import CHUNK_TOKENS, ChunkKey, ContextInfo, ExportedContext

Opened = Callable[[Path], AbstractContextManager[Sink]]
"""A new archive of this name, which is whole and on disk when the block has ended."""


class BackedUpClient(ExportingClient, Protocol):
    def contexts(self) -> list[ContextInfo]: ...


@dataclass(slots=True)
class BackedUp:
    """``archive``: the new one; None if nothing has changed."""

    archive: Path | None = None
    n_contexts: int = 0
    n_changed: int = 0
    n_chunks: int = 0
    failed: list[tuple[str, MachineError | CallerError]] = field(default_factory=list)


def back_up(client: BackedUpClient, folder: Path, opened: Opened, now: float) -> BackedUp:
    """Add an archive to the folder. Raises BadRequest if it is another app's, OSError, and what ``opened`` raises."""
    index = backup_index.read_index(folder) or BackupIndex()
    app = index.name(str(client.server.get("app")))
    if index.app not in ("", app):
        raise BadRequest("the folder holds the backup of another app", hint="Each app has a folder of its own.")
    index.app = app
    done, before, index.contexts = BackedUp(), index.contexts, {}
    changed = list[tuple[ContextInfo, str]]()
    for info in _named(client):
        try:
            content = index.content(info, client.export_context(info.id))
        except (MachineError, CallerError) as error:
            done.failed.append((info.name, error))
            continue
        name = index.name(info.name)
        index.contexts[name] = content
        if before.get(name) != content:
            changed.append((info, name))
    done.n_contexts = len(index.contexts)
    if changed:
        done.archive = backup_index.next_archive(folder)
        with opened(done.archive) as sink:
            _write(client, changed, index, sink, now, done)
        index.last = backup_index.number_of(done.archive)
    if changed or before.keys() != index.contexts.keys():
        backup_index.write_index(folder, index)
    return done


def back_up_all(client: BackedUpClient, sink: Sink, now: float) -> BackedUp:
    """Write all contexts into one archive."""
    index, done = BackupIndex(), BackedUp()
    infos = _named(client)
    _write(client, [(info, index.name(info.name)) for info in infos], index, sink, now, done)
    done.n_contexts = len(infos) - len(done.failed)
    return done


def _named(client: BackedUpClient) -> list[ContextInfo]:
    return sorted((info for info in client.contexts() if not info.anonymous), key=lambda info: info.last_used)


def _write(
    client: BackedUpClient,
    changed: Sequence[tuple[ContextInfo, str]],
    index: BackupIndex,
    sink: Sink,
    now: float,
    done: BackedUp,
) -> None:
    """Contexts that cannot be read are left out, also of the index."""
    writer = ArchiveWriter(sink, now)
    for info, name in changed:
        try:
            context: ExportedContext = client.export_context(info.id)
        except (MachineError, CallerError) as error:  # deleted meanwhile, or damaged
            index.contexts.pop(name, None)
            done.failed.append((info.name, error))
            continue
        index.contexts[name] = index.content(info, context)  # it may have gone on meanwhile
        wrote = export_context(
            client, info, writer, wanted=lambda key: index.chunk(key) not in index.chunks, context=context
        )
        index.chunks.update(map(index.chunk, wrote.keys))
        done.n_changed += 1
        done.n_chunks += wrote.n_chunks
    writer.close()


# -- back


class Restore:
    """Makes the contexts of a backup. ``known``: whether there was a context of this name at the last backup."""

    def __init__(self, importer: ArchiveImport, known: Callable[[str], bool] = lambda name: True) -> None:
        self._importer, self._known = importer, known
        self._seen = set[str]()
        self._made = list[OpenContext]()
        self._chunks: dict[ChunkKey, tuple[OpenContext, int]] = {}
        """Those that are wanted, by the names that they have in the archives."""
        self._current: OpenContext | None = None

    def archive(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """One archive of the backup; the newest comes first, since it says what contexts hold now."""
        for item in items:
            match item:
                case ReadSpans():
                    yield from self._context(item)
                case ChunkRecord():
                    self._chunk(item)
                case Lost():
                    yield item

    def end(self) -> Iterator[Outcome]:
        for made in self._made:
            yield made.end()

    def _context(self, found: ReadSpans) -> Iterator[Outcome]:
        head = found.head
        if head.name in self._seen or not self._known(head.name):
            return
        self._seen.add(head.name)
        for made in self._importer.make(found):
            if not isinstance(made, OpenContext):
                yield made
                continue
            self._made.append(made)
            tokens = [token for span in found.spans for token in unpack(span.tokens)]
            for key, index in _keys(head.root, tokens) if head.root else ():
                self._chunks.setdefault(key, (made, index))

    def _chunk(self, chunk: ChunkRecord) -> None:
        try:
            key = read_header(chunk.data).key
        except ChunkDamaged:
            return
        made, index = self._chunks.pop(key, (None, 0))
        if made is None:
            return  # of what a context held before
        if self._current is not None and self._current is not made:
            self._current.flush()
        self._current = made
        made.add(ChunkRecord(chunk.context, index, chunk.proof, chunk.data))


def _keys(root: bytes, tokens: Sequence[int]) -> Iterator[tuple[ChunkKey, int]]:
    """The keys that chunks of these tokens may have: of whole ones, and of a last one of any length."""
    n = len(tokens) // CHUNK_TOKENS
    whole = chunk_keys(root, tokens[: n * CHUNK_TOKENS])
    yield from ((key, i) for i, key in enumerate(whole))
    last = tail_keys(whole[-1] if whole else root, array("i", tokens[n * CHUNK_TOKENS :]))
    yield from ((key, n) for key in last)

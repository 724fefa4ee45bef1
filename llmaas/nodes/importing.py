"""The contexts of an archive, made in a daemon.

Law: a context is made whole, by its tokens, before its chunks are sent; so whatever ends the import, no context is half
there. A context that cannot be made does not keep the others from it. What is lost or refused is said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from llmaas.api.bulk import Bulk
from llmaas.api.operation import Operation
from llmaas.api.transfer_operations import import_chunks
from llmaas.api.transfer_records import ChunkPiece, ImportedChunks
from llmaas.errors import CallerError, ChunkDamaged, MachineError
from llmaas.frozen import frozen
from llmaas.kvchunks.codec.header import read_header
from llmaas.nodes.ahead import ahead
from llmaas.nodes.archive.reader import Item, Lost, ReadSpans
from llmaas.nodes.archive.records import ChunkRecord, ContextHead
from llmaas.nodes.export import ON_WAY, Begun, frame_bytes
from llmaas.records import CHUNK_TOKENS, ContextInfo, ExportedContext

T = TypeVar("T")


class ImportingClient(Protocol):
    """What is wanted of a client."""

    server: Mapping[str, Any]

    def import_context(
        self, exported: ExportedContext, *, name: str | None = None, adapter: str = "", ttl: float | None = None
    ) -> ContextInfo: ...

    def begin(self, operation: Operation[T]) -> Begun[T]: ...


@frozen
class Imported:
    """A context that was made. Of its chunks in the archive ``taken`` and ``known`` need not be computed; ``why``: of
    the last one that was ``refused``. ``adapter``: the one it had, if there is none of that name here."""

    info: ContextInfo
    taken: int = 0
    known: int = 0
    refused: int = 0
    why: str = ""
    adapter: str = ""


@frozen
class NotImported:
    """A context that could not be made."""

    name: str
    error: MachineError | CallerError


Outcome = Imported | NotImported | Lost


class ArchiveImport:
    """``name``: of the first context, in place of its own; ``adapters``: those that the daemon has; ``trusted``: see
    ``api.transfer_operations.import_chunks``."""

    def __init__(
        self,
        client: ImportingClient,
        *,
        name: str | None = None,
        adapters: Collection[str] = (),
        trusted: bool = False,
        chunks: bool = True,
    ) -> None:
        self._client, self._name, self._adapters, self._trusted = client, name, adapters, trusted
        self._with_chunks = chunks
        self._open: OpenContext | None = None

    def run(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """Make what an archive holds, one context after the other. Raises what the daemon's end or the file raise."""
        with ahead(iter(items)) as found:
            for item in found:
                match item:
                    case ReadSpans():
                        yield from self._end()
                        yield from self._begin(item)
                    case ChunkRecord():
                        if self._open is not None:
                            self._open.add(item)
                    case Lost():
                        yield item
        yield from self._end()

    def _begin(self, found: ReadSpans) -> Iterator[Outcome]:
        name, self._name = self._name, None
        for made in self.make(found, name):
            if isinstance(made, OpenContext):
                self._open = made
            else:
                yield made

    def make(self, found: ReadSpans, name: str | None = None) -> Iterator[OpenContext | Lost | NotImported]:
        """Make a context in the daemon; what of it is lost comes first."""
        head = found.head
        adapter = head.adapter if head.adapter in self._adapters else ""
        exported = ExportedContext(head.name, head.model, head.vocab, found.spans)
        if found.n_lost:
            yield Lost(f"the last {found.n_lost} of {head.n_spans} pieces of {name or head.name!r}")
        try:
            info = self._client.import_context(exported, name=name, adapter=adapter, ttl=head.ttl)
        except (MachineError, CallerError) as error:
            yield NotImported(name or head.name, error)
            return
        missing_adapter = head.adapter if adapter != head.adapter else ""
        made = Imported(info, adapter=missing_adapter)
        yield OpenContext(self._client, head, made, self._trusted, self._with_chunks)

    def _end(self) -> Iterator[Outcome]:
        if self._open is not None:
            ended, self._open = self._open, None
            yield ended.end()


class OpenContext:
    """A context that was made, and whose chunks come."""

    def __init__(
        self, client: ImportingClient, head: ContextHead, made: Imported, trusted: bool, with_chunks: bool
    ) -> None:
        self._client, self._head, self._made, self._trusted = client, head, made, trusted
        self._most = frame_bytes(client.server)
        self._pieces, self._nbytes = list[ChunkPiece](), 0
        self._on_way = deque[Begun[ImportedChunks]]()
        self._missing: frozenset[int] | None = None
        """Whole chunks that the daemon wants; None: it was not asked yet."""
        self._useless = "" if with_chunks and head.root and head.kv else "chunks are not wanted"

    def add(self, chunk: ChunkRecord) -> None:
        if self._missing is None and not self._useless:
            said = self._client.begin(import_chunks(self._made.info.id, self._head.root, self._head.kv)).result()
            self._missing, self._useless = frozenset(said.missing), "" if said.usable else said.why
        if self._useless:
            self._count(ImportedChunks(0, 0, 1, self._useless))
        elif _is_whole(chunk.data) and chunk.index not in (self._missing or ()):
            self._count(ImportedChunks(0, 1, 0))
        else:
            for offset in range(0, len(chunk.data), self._most):
                data = chunk.data[offset : offset + self._most]
                if self._nbytes + len(data) > self._most:
                    self.flush()
                proof = chunk.proof if not offset else b""
                self._pieces.append(ChunkPiece(chunk.index, len(chunk.data), data, offset, proof))
                self._nbytes += len(data)

    def end(self) -> Imported:
        self.flush()
        self._replies(0)
        return self._made

    def flush(self) -> None:
        """Send what is held. The daemon stores what came before meanwhile."""
        if self._pieces:
            self._replies(ON_WAY - 1)
            pieces, self._pieces, self._nbytes = self._pieces, [], 0
            head, context = self._head, self._made.info.id
            sent = import_chunks(context, head.root, head.kv, pieces, trusted=self._trusted)
            self._on_way.append(self._client.begin(sent))

    def _replies(self, n_left: int) -> None:
        """Take replies until so many are left on the way."""
        while len(self._on_way) > n_left:
            self._count(self._on_way.popleft().result())

    def _count(self, said: ImportedChunks) -> None:
        made = self._made
        self._made = replace(
            made,
            taken=made.taken + said.taken,
            known=made.known + said.known,
            refused=made.refused + said.refused,
            why=said.why or made.why,
        )


def _is_whole(data: Bulk) -> bool:
    try:
        return read_header(data).n_tokens == CHUNK_TOKENS
    except ChunkDamaged:
        return False

"""Contexts of a daemon, written into an archive.

Law: what is in memory is one context's messages and a few frames of chunks. A chunk is written if it is one of the
tokens that the archive holds, whatever is done to the context meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from llmaas.api.bulk import Bulk
from llmaas.api.operation import Operation
from llmaas.api.transfer_messages import MOST_CHUNK_BYTES
from llmaas.api.transfer_operations import export_chunks
from llmaas.api.transfer_records import ChunkPiece, ExportedChunks
from llmaas.errors import ChunkDamaged, ModelMismatch
from llmaas.frozen import frozen
from llmaas.kvchunks.codec.header import read_header
from llmaas.kvchunks.keys import chunk_keys
from llmaas.kvchunks.store.tokens import unpack
from llmaas.nodes.ahead import ahead
from llmaas.nodes.archive.records import ContextHead
from llmaas.nodes.archive.writer import ArchiveWriter
from llmaas.records import ChunkKey, ContextInfo, ExportedContext

PAGE_BYTES = 3 << 19
"""Of chunks that are asked for at once. A page goes from thread to thread on either side, and these wait for each
other: the fewer pages, the less of that. A frame has room for more, as some chunks are larger than those before."""
ON_WAY = 3
"""Pages that are on the way at once: the daemon makes the next one while the last one is read. With two of them the
thread that makes one and the loop that sends the other waited for each other, and four were no faster."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Begun(Protocol[T_co]):
    """A request that was sent."""

    def result(self) -> T_co: ...


class ExportingClient(Protocol):
    """What is wanted of a client."""

    server: Mapping[str, Any]

    def export_context(self, context: str) -> ExportedContext: ...

    def begin(self, operation: Operation[T]) -> Begun[T]: ...


@frozen
class Exported:
    """What of a context is in the archive. ``n_missing`` chunks are not stored: they will be computed."""

    name: str
    n_tokens: int
    n_chunks: int = 0
    n_missing: int = 0
    n_skipped: int = 0
    """Chunks that ``wanted`` did not want."""
    keys: tuple[ChunkKey, ...] = ()
    """Of the chunks that are there."""


def frame_bytes(server: Mapping[str, Any]) -> int:
    """How many bytes of chunks go into a frame of the daemon that said this in its hello."""
    limits = server.get("limits")
    most = limits.get("max_frame") if isinstance(limits, dict) else None
    return min(MOST_CHUNK_BYTES, most // 2) if isinstance(most, int) else MOST_CHUNK_BYTES


def export_context(
    client: ExportingClient,
    info: ContextInfo,
    writer: ArchiveWriter,
    *,
    chunks: bool = True,
    wanted: Callable[[ChunkKey], bool] = lambda key: True,
    context: ExportedContext | None = None,
) -> Exported:
    """Write a context, with those of its chunks that are stored and ``wanted``. ``context``: what was exported of it,
    if that has been done. Raises UnknownContext, ContextDamaged, and what the archive's sink raises."""
    about = _about(client, info.id) if chunks else None
    context = context or client.export_context(info.id)
    head = ContextHead(0, context.name, context.model, context.vocab, 0, info.adapter, info.ttl)
    tokens = [token for span in context.spans for token in unpack(span.tokens)]
    if about is None or not about.n_kv:
        writer.begin(head, context.spans)
        writer.end()
        return Exported(context.name, len(tokens))
    writer.begin(replace(head, root=about.root, kv=about.kv), context.spans)
    keys = chunk_keys(about.root, tokens[: about.n_kv])
    indices = [i for i, key in enumerate(keys) if wanted(key)]
    written = list[ChunkKey]()
    with ahead(_chunks(client, info.id, indices)) as found:
        for first, data in found:
            if _is_of(data, keys[first.index]):
                writer.chunk(first.index, data, first.proof)
                written.append(keys[first.index])
    writer.end()
    return Exported(
        context.name, len(tokens), len(written), len(indices) - len(written), len(keys) - len(indices), tuple(written)
    )


def _about(client: ExportingClient, context: str) -> ExportedChunks | None:
    try:
        return client.begin(export_chunks(context)).result()
    except ModelMismatch:  # its chunks are of no use to anybody who has this model
        return None


def _is_of(data: Bulk, key: ChunkKey) -> bool:
    """Whether the chunk is of these tokens: the context may have changed since they were read."""
    try:
        return read_header(data).key == key
    except ChunkDamaged:
        return False


def _chunks(client: ExportingClient, context: str, indices: Sequence[int]) -> Iterator[tuple[ChunkPiece, Bulk]]:
    """The chunks that are stored, whole, each with its first part."""
    begun: list[ChunkPiece] = []
    for page in _pages(client, context, indices):
        for piece in page.pieces:
            if piece.offset == 0:
                begun.clear()
            begun.append(piece)
            if piece.offset + len(piece.data) == piece.n_bytes and begun[0].offset == 0:
                data = piece.data if len(begun) == 1 else b"".join(part.data for part in begun)
                yield begun[0], data


def _pages(client: ExportingClient, context: str, indices: Sequence[int]) -> Iterator[ExportedChunks]:
    """Pages are asked for ahead as long as each has had all that was asked of it: then where the next one begins is
    known before it has come."""
    n_bytes, at, offset, n_asked, n_on_way = frame_bytes(client.server), 0, 0, 1, 1
    on_way, asked = deque[tuple[int, Begun[ExportedChunks]]](), 0
    while at < len(indices):
        while len(on_way) < n_on_way and asked < len(indices):
            n = min(n_asked, len(indices) - asked)
            wanted = export_chunks(context, indices[asked : asked + n], offset=0 if on_way else offset, n_bytes=n_bytes)
            on_way.append((n, client.begin(wanted)))
            asked += n
        n, begun = on_way.popleft()
        page = begun.result()
        yield page
        if not page.n_done and not page.pieces:
            return  # a daemon that does not go on
        at, offset = at + page.n_done, page.offset
        if page.pieces:
            n_asked = max(1, PAGE_BYTES // page.pieces[-1].n_bytes)
        n_on_way = ON_WAY if page.n_done == n else 1
        if page.n_done != n:
            while on_way:
                on_way.popleft()[1].result()  # of no use, but there are never more on the way
            asked = at

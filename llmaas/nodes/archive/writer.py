"""Writes an archive: contexts, one behind the other, and a trailer.

Law: what is held in memory is one block. An archive without its trailer is not complete, and a reader says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmaas.api.bulk import Bulk
from llmaas.errors import BadRequest
from llmaas.nodes.archive.blocks import MOST_BYTES, BlockWriter, Sink
from llmaas.nodes.archive.records import (
    FORMAT,
    ArchiveHeader,
    ChunkRecord,
    ContextEnd,
    ContextHead,
    Record,
    SpanRun,
    Trailer,
    kind_of,
    packed,
    parts_of,
)
from llmaas.records import ContextSpan
from llmaas.version import __version__

_RUN_BYTES = 1 << 20
"""Tokens and text of one block of spans, about."""


class ArchiveWriter:
    """``now``: seconds since 1970. ``close`` ends the archive; the sink stays open."""

    def __init__(self, sink: Sink, now: float) -> None:
        self._blocks = BlockWriter(sink)
        self._open: ContextHead | None = None
        self._n_chunks = 0
        self.n_contexts = self.n_chunks = 0
        self._write(ArchiveHeader(FORMAT, f"llmaas {__version__}", now))

    @property
    def nbytes(self) -> int:
        """Bytes of all that was written."""
        return self._blocks.nbytes

    def begin(self, head: ContextHead, spans: Sequence[ContextSpan]) -> None:
        """Begin a context; its number and how many spans it has are set here. Raises BadRequest for a message that no
        block can hold."""
        self.end()
        self._open = replace(head, number=self.n_contexts, n_spans=len(spans))
        self.n_contexts += 1
        self._n_chunks = 0
        self._write(self._open)
        for first, run in _runs(spans):
            self._write(SpanRun(self._open.number, first, run))

    def chunk(self, index: int, data: Bulk, proof: bytes = b"") -> None:
        """Add a chunk of the context that was begun last."""
        assert self._open is not None, "a context comes first"
        self._write(ChunkRecord(self._open.number, index, proof, data))
        self._n_chunks += 1
        self.n_chunks += 1

    def end(self) -> None:
        """The context that was begun last has no more chunks."""
        if self._open is not None:
            self._write(ContextEnd(self._open.number, self._open.n_spans, self._n_chunks))
            self._open = None

    def close(self) -> None:
        self.end()
        self._write(Trailer(self.n_contexts, self.n_chunks, self._blocks.written))

    def _write(self, record: Record) -> None:
        if isinstance(record, ChunkRecord):  # coded chunks are dense: zstd would look at them for nothing
            self._blocks.write_raw(kind_of(record), parts_of(record))
        else:
            self._blocks.write(kind_of(record), packed(record))


def _runs(spans: Sequence[ContextSpan]) -> Iterator[tuple[int, tuple[ContextSpan, ...]]]:
    """Spans that go into one block, with the number of the first."""
    first, nbytes = 0, 0
    for i, span in enumerate(spans):
        size = len(span.tokens) + 4 * len(span.text or "") + 16
        if size > MOST_BYTES // 2:
            raise BadRequest(f"a message of {len(span.text or '')} characters is too long for an archive")
        if i > first and nbytes + size > _RUN_BYTES:
            yield first, tuple(spans[first:i])
            first, nbytes = i, 0
        nbytes += size
    if first < len(spans):
        yield first, tuple(spans[first:])

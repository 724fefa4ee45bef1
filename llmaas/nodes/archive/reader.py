"""Reads an archive: what is whole, in order, and what is lost.

Law: nothing is raised for what the bytes are, but for another format. What is held in memory is one block, and the
spans of one context.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.nodes.archive.blocks import Block, Gap, Source, read_blocks
from llmaas.nodes.archive.records import (
    CHUNK,
    FORMAT,
    SPANS,
    ArchiveHeader,
    ChunkRecord,
    ContextEnd,
    ContextHead,
    SpanRun,
    Trailer,
    unpacked,
)
from llmaas.records import CHUNK_TOKENS, ContextSpan


@frozen
class ReadSpans:
    """A context with all of its spans that stand before the first that is lost. ``n_lost`` of them are."""

    head: ContextHead
    spans: tuple[ContextSpan, ...]
    n_lost: int


@frozen
class Lost:
    """Something of the archive is not there, or not as it was written. ``only_kv``: nothing but chunks, which can be
    computed."""

    what: str
    only_kv: bool = False


Item = ReadSpans | ChunkRecord | ContextEnd | Lost


class ArchiveReader:
    """Iterate over it once. A ReadSpans is followed by the chunks of its context that are whole."""

    def __init__(self, source: Source) -> None:
        self._blocks = read_blocks(source)
        self._head: ContextHead | None = None
        self._spans: list[ContextSpan] | None = None
        """Those of ``_head`` so far; None when they have been given."""
        self._expect: int | None = 0
        """Number of the next block; None if it cannot be known."""
        self._n_contexts = self._n_chunks = self._n_lost = 0
        self.complete = False
        """Whether the trailer was there."""

    def __iter__(self) -> Iterator[Item]:
        for item in self._items():
            self._n_lost += isinstance(item, Lost)
            yield item

    def _items(self) -> Iterator[Item]:
        for block in self._blocks:
            if isinstance(block, Gap):
                yield from self._hole(block)
                continue
            if self._expect is not None and block.number != self._expect:
                yield Lost(f"{block.number - self._expect} blocks before block {block.number}")
            self._expect = block.number + 1
            yield from self._record(block)
        yield from self._flush()
        if not self.complete:
            yield Lost("the archive's end: it was cut off, or never finished")

    def _hole(self, hole: Gap) -> Iterator[Item]:
        if hole.kind == CHUNK:
            yield from self._flush()
        if self._expect is not None:
            self._expect = self._expect + 1 if hole.kind else None
        what = {CHUNK: "a chunk", SPANS: "messages"}.get(hole.kind, "a block")
        yield Lost(f"{what} at byte {hole.at}: {hole.why}", hole.kind == CHUNK)

    def _record(self, block: Block) -> Iterator[Item]:
        record = unpacked(block.kind, block.body)
        if isinstance(record, SpanRun):
            yield from self._run(record)
            return
        yield from self._flush()
        match record:
            case ArchiveHeader(version, made_by, _, chunk_tokens):
                _refuse_other(version, made_by, chunk_tokens)
            case ContextHead():
                self._head, self._spans = record, []
                self._n_contexts += 1
            case ChunkRecord(context):
                self._n_chunks += 1
                whose = self._head.number if self._head is not None else None
                yield record if context == whose else Lost(f"a chunk of context {context}, which is lost", True)
            case ContextEnd():
                yield record
            case Trailer():
                self.complete = True
                yield from self._count(record)
            case None:
                yield Lost(f"block {block.number} (kind {block.kind}): a later version of llmaas may understand it")

    def _run(self, run: SpanRun) -> Iterator[Item]:
        if self._head is None or run.context != self._head.number:
            yield from self._flush()
            yield Lost(f"messages of context {run.context}, of which nothing else is there")
        elif self._spans is not None and run.first == len(self._spans):
            self._spans.extend(run.spans)

    def _count(self, trailer: Trailer) -> Iterator[Item]:
        found = (self._n_contexts, self._n_chunks)
        if not self._n_lost and found != (trailer.n_contexts, trailer.n_chunks):
            yield Lost(
                f"of {trailer.n_contexts} contexts and {trailer.n_chunks} chunks there are {found[0]} and {found[1]}"
            )

    def _flush(self) -> Iterator[Item]:
        """All spans of a context have been read."""
        if self._head is not None and self._spans is not None:
            spans, self._spans = tuple(self._spans), None
            yield ReadSpans(self._head, spans, self._head.n_spans - len(spans))


def _refuse_other(version: int, made_by: str, chunk_tokens: int) -> None:
    if version != FORMAT or chunk_tokens != CHUNK_TOKENS:
        raise BadRequest(
            f"the archive has format {version} with chunks of {chunk_tokens} tokens; this is format {FORMAT}, "
            f"with {CHUNK_TOKENS}",
            hint=f"It was made by {made_by[:80]}: use that version or a later one.",
        )

"""What the blocks of an archive say, as msgpack maps.

Law: pure. What a map holds is checked before it is believed: a map that no writer wrote gives None. Fields that a later
version adds are ignored.

    header    format, made_by, created, chunk_tokens
    context   number, name, model, vocab, adapter, ttl, root, kv, sampler, n_spans
    spans     context, first, spans: lists of [tokens, role, text, open]
    chunk     context, index, proof, data
    end       context, n_spans, n_chunks
    trailer   n_contexts, n_chunks, n_blocks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped,unused-ignore]

from llmaas.api.bulk import Bulk, Parts, Span, look_through, packed_parts
from llmaas.api.bulk import unpacked as unpacked_map
from llmaas.frozen import frozen
from llmaas.records import CHUNK_TOKENS, TOKEN_BYTES, ContextSpan

FORMAT = 1
HEADER, CONTEXT, SPANS, CHUNK, END, TRAILER = range(1, 7)
"""Kinds of blocks."""

T = TypeVar("T")


@frozen
class ArchiveHeader:
    """``format``: of the records; ``made_by``: a version of llmaas; ``created``: seconds since 1970."""

    format: int
    made_by: str
    created: float
    chunk_tokens: int = CHUNK_TOKENS


@frozen
class ContextHead:
    """A context, of which its spans and chunks follow. ``number``: of the context in the archive."""

    number: int
    name: str
    model: str
    """That made it."""
    vocab: str
    """Names the tokenizer that its tokens belong to."""
    n_spans: int
    adapter: str = ""
    ttl: float | None = None
    root: bytes = b""
    """Of its chunk keys: they say of which tokens a chunk is."""
    kv: bytes = b""
    """Fingerprint of model and adapter: where it is the same, chunks can be used."""
    sampler: None = None
    """For an answer that is under way; there is none in a context that rests."""


@frozen
class SpanRun:
    """Spans of a context, from number ``first`` on."""

    context: int
    first: int
    spans: tuple[ContextSpan, ...]


@frozen
class ChunkRecord:
    """A chunk as it is coded. ``index``: its place in the context; ``proof``: by which the daemon that coded it knows
    it again, or nothing."""

    context: int
    index: int
    proof: bytes
    data: Bulk


@frozen
class ContextEnd:
    """How much there was of a context."""

    context: int
    n_spans: int
    n_chunks: int


@frozen
class Trailer:
    """The last record of an archive that is complete; ``n_blocks`` stand before it."""

    n_contexts: int
    n_chunks: int
    n_blocks: int


Record = ArchiveHeader | ContextHead | SpanRun | ChunkRecord | ContextEnd | Trailer
_CLASSES: dict[int, type[Record]] = {
    HEADER: ArchiveHeader,
    CONTEXT: ContextHead,
    SPANS: SpanRun,
    CHUNK: ChunkRecord,
    END: ContextEnd,
    TRAILER: Trailer,
}
_KINDS = {cls: kind for kind, cls in _CLASSES.items()}
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bytes": (bytes,),
    "Bulk": (bytes, memoryview),
    "float | None": (float, int, type(None)),
    "None": (type(None), bytes, dict),
}
"""By the annotations of the fields."""


def kind_of(record: Record) -> int:
    return _KINDS[type(record)]


def packed(record: Record) -> bytes:
    return b"".join(parts_of(record))


def parts_of(record: Record) -> Parts:
    """What ``packed`` gives, in parts: a chunk's data is one of them, and no copy."""
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    if isinstance(record, SpanRun):
        fields["spans"] = [(span.tokens, span.role, span.text, span.open) for span in record.spans]
    return packed_parts(fields)


def unpacked(kind: int, body: bytes) -> Record | None:
    """The record; None if no writer wrote it, or if a later version did."""
    cls = _CLASSES.get(kind)
    if cls is None:
        return None
    try:
        long = list[Span]()
        if cls is ChunkRecord:
            look_through(body, None, long)
        fields = unpacked_map(body, long, raw=False, strict_map_key=True)
        return _record(cls, fields)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, msgpack.UnpackException):
        return None


def _record(cls: type[Any], fields: dict[str, Any]) -> Record:
    """Raises ValueError, TypeError, KeyError."""
    found: dict[str, Any] = {}
    for name, field in cls.__dataclass_fields__.items():
        if name not in fields and field.default is not MISSING:
            continue  # it has a default
        value = fields[name]
        if field.type == "tuple[ContextSpan, ...]":
            found[name] = tuple(map(_span, value))
        elif type(value) in _TYPES[field.type]:
            found[name] = None if field.type == "None" else value
        else:
            raise TypeError(name)
        if field.type == "int" and not 0 <= value < 1 << 62:
            raise ValueError(name)
    record: Record = cls(**found)
    return record


def _span(value: Sequence[Any]) -> ContextSpan:
    tokens, role, text, is_open = value
    if type(tokens) is not bytes or len(tokens) % TOKEN_BYTES or type(is_open) is not bool:
        raise TypeError("tokens")
    if not all(word is None or type(word) is str for word in (role, text)) or (role is not None and text is None):
        raise TypeError("text")
    return ContextSpan(tokens, role, text, is_open)

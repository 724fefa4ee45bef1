"""Spans of the store as they are handed out and taken in.

Law: pure. Nothing is taken in that this model could not have made: token ids are in its vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmaas.errors import BadRequest
from llmaas.kvchunks.store.store import Span
from llmaas.kvchunks.store.tokens import pack, unpack
from llmaas.records import ContextSpan


def exported_spans(spans: Iterable[Span]) -> tuple[ContextSpan, ...]:
    return tuple(ContextSpan(pack(span.tokens), span.role, span.text, span.open) for span in spans)


def imported_spans(spans: Iterable[ContextSpan]) -> list[Span]:
    return [Span(tuple(unpack(span.tokens)), span.role, span.text, span.open) for span in spans]


def refuse_unknown_tokens(spans: Sequence[Span], n_vocab: int) -> None:
    """Raises BadRequest."""
    unknown = next((token for span in spans for token in span.tokens if not 0 <= token < n_vocab), None)
    if unknown is not None:
        raise BadRequest(f"token {unknown} is not in the vocabulary of {n_vocab}")

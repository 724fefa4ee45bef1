"""F5. What the store takes and gives: frozen values, no behaviour.

Law: nothing here knows SQLite, files or the format of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llmaas.records import AppId, ChunkKey, ChunkNotes, ContextId


@dataclass(frozen=True, slots=True)
class ContextRow:
    """A stored context. Times are seconds of the service's wall clock."""

    id: ContextId
    app: AppId
    name: str
    model: str
    """Name of the model that made it; informative."""
    vocab: str
    """Fingerprint of the tokenizer that its token ids belong to."""
    created: float
    last_used: float
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Span:
    """A run of tokens that belongs together: a message, or the template's glue between messages.

    ``role`` and ``text`` are None for glue and raw text. ``open`` marks a generated message whose closing
    tokens are not in the context yet; it means something only while the span is the last one.
    """

    tokens: tuple[int, ...]
    role: str | None = None
    text: str | None = None
    open: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk's bytes are: ``nbytes`` from ``offset`` on in payload file ``file``."""

    key: ChunkKey
    file: int
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


class StoredChunk(NamedTuple):
    """A chunk that the store holds; ``notes`` None: nothing was said of it."""

    key: ChunkKey
    n_tokens: int
    nbytes: int
    notes: ChunkNotes | None = None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Sizes in bytes. ``bytes_written`` and ``damaged`` count from the opening of the store."""

    contexts: int
    chunks: int
    live_bytes: int
    """Payload bytes that an index row names."""
    dead_bytes: int
    """The rest of the payload files: discarded, or left by a crash."""
    file_bytes: int
    index_bytes: int
    """Database and write-ahead log."""
    bytes_written: int
    """Payload and index together; the index part is an upper bound (see ``Index``)."""
    damaged: int
    """Chunks whose bytes turned out missing, short or unreadable."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check`` found. ``repaired`` is True if it was asked to mend, and did."""

    problems: tuple[str, ...]
    contexts: int
    chunks: int
    repaired: bool = False

    @property
    def clean(self) -> bool:
        return not self.problems

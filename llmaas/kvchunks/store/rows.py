"""What the store takes and gives: frozen values, no behaviour.

Law: nothing here knows SQLite, files or the format of a chunk.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llmaas.records import AppId, ChunkKey, ChunkMeta, ContextId


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
    adapter: str = ""
    """Name of the LoRA adapter that it uses; "": the bare model."""


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """A LoRA adapter that was registered while the service ran: its file, and what the file held then."""

    name: str
    path: str
    fingerprint: str


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
    """Where a chunk's bytes are: ``nbytes`` from ``offset`` on in payload file ``file``.

    ``seal``: the number of the data key that they are sealed under; None, they are in clear.
    """

    key: ChunkKey
    file: int
    offset: int
    nbytes: int
    seal: int | None = None

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


class StoredChunk(NamedTuple):
    """A chunk that the store holds; ``meta`` None: nothing was said of it."""

    key: ChunkKey
    n_tokens: int
    nbytes: int
    meta: ChunkMeta | None = None


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


class Damage(enum.Enum):
    """Kinds of things that ``check`` finds."""

    INDEX = "index"
    """SQLite's own verdict. Not mended by ``check``: see ``Store.repair_index``."""
    COUNT = "count"
    MISSING = "missing"
    SHORT = "short"
    OVERLAP = "overlap"
    UNREADABLE = "unreadable"
    FLIPPED = "flipped"
    STRAY = "stray"
    EMPTY = "empty"
    FOREIGN = "foreign"
    MODE = "mode"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``n_tokens``: those of the chunk that is lost by it, 0 if none is."""

    kind: Damage
    text: str
    n_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the chunks on disk are sealed."""

    ciphers: tuple[str, ...]
    keys: int
    """Data keys, one for each context that has sealed chunks (more if the master key was changed),"""
    keys_that_fit: int
    """and those of them that the master key opens."""
    plain: int = 0
    """Chunks in clear."""
    locked: int = 0
    """Chunks under a key that does not open."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check`` found. ``repaired`` is True if it was asked to mend, and did."""

    found: tuple[Problem, ...]
    contexts: int
    chunks: int
    repaired: bool = False

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(problem.text for problem in self.found)

    @property
    def clean(self) -> bool:
        return not self.found


@dataclass(frozen=True, slots=True)
class Shortened:
    """A conversation of which only the first ``kept`` of ``n_tokens`` tokens could be read."""

    name: str
    app: str
    kept: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Salvage:
    """What became of a damaged index: where it is now, and what is in the new one."""

    moved: Path
    contexts: int
    shortened: tuple[Shortened, ...]
    lost: int
    """Conversations whose words were found, but not whose they are."""

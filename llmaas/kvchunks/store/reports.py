"""What the store says about itself: sizes, damage, encryption, and what a repair saved.

Law: values only; nothing here knows SQLite, files or the format of a chunk.
"""

from __future__ import annotations

import enum
from pathlib import Path

from llmaas.frozen import frozen


@frozen
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
    """Payload and index together; the index part is an upper bound (see ``Txn.written``)."""
    damaged: int
    """Chunks whose bytes turned out missing, short or unreadable."""


class Damage(enum.Enum):
    """What kind of problem ``Store.check`` found."""

    INDEX = "index"
    """SQLite reports it. ``check`` does not mend it: see ``Store.repair_index``."""
    ROW = "row"
    """A row of a conversation, or of an adapter, does not match its checksum: see ``Store.repair_index``."""
    COUNT = "count"
    TURN = "turn"
    """A turn's idempotency key does not match its checksum. The conversation is not affected."""
    TTL = "ttl"
    """How long a context stays unused does not match its checksum. It stays."""
    KEY = "key"
    """The second copy of the key of a conversation's text is missing or damaged. The conversation is not affected."""
    META = "meta"
    MISSING = "missing"
    SHORT = "short"
    OVERLAP = "overlap"
    UNREADABLE = "unreadable"
    FLIPPED = "flipped"
    STRAY = "stray"
    EMPTY = "empty"
    FOREIGN = "foreign"
    MODE = "mode"


@frozen
class Problem:
    """One problem that ``check`` found. ``n_tokens`` counts the tokens of the chunk that it costs, 0 if none."""

    kind: Damage
    text: str
    n_tokens: int = 0


@frozen
class CheckReport:
    """What ``check`` found. ``repaired`` is True if it was asked to mend the problems, and did."""

    found: tuple[Problem, ...]
    contexts: int
    chunks: int
    repaired: bool = False

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(problem.text for problem in self.found)


@frozen
class Encryption:
    """How the chunks on disk are encrypted, and whether the master key fits."""

    ciphers: tuple[str, ...]
    keys: int
    """Data keys: one for each context with encrypted chunks, more if the master key was changed."""
    keys_that_fit: int
    """Data keys that the master key opens."""
    plain: int = 0
    """Chunks in clear."""
    locked: int = 0
    """Chunks under a data key that the master key does not open."""
    sealed: int = 0
    """Conversations whose text is encrypted."""
    open: int = 0
    """Conversations in clear."""


@frozen
class Shortened:
    """A conversation of which only the first ``kept`` of ``n_tokens`` tokens could be read."""

    name: str
    app: str
    kept: int
    n_tokens: int


@frozen
class Mended:
    """A conversation of which something was damaged and no token lost. ``what``: what was, and what was done."""

    name: str
    app: str
    what: str


@frozen
class Salvage:
    """What became of a damaged index: where it is now, and what is in the new one."""

    moved: Path
    contexts: int
    shortened: tuple[Shortened, ...]
    mended: tuple[Mended, ...]
    lost: int
    """Conversations of which something was found, but not the name or owner."""
    adapters_lost: int

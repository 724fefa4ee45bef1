"""Coded chunks on their way from one daemon to another, and what became of them.

Law: pure; values only.
"""

from __future__ import annotations

from llmaas.api.bulk import Bulk
from llmaas.calls import Done
from llmaas.calls.request import MAX_KEY
from llmaas.frozen import frozen
from llmaas.records import TOKEN_BYTES

_DIGEST_BYTES = 16


@frozen
class ChunkPiece:
    """A part of a coded chunk: ``data`` stands at ``offset`` of its ``n_bytes``. ``index``: the chunk holds the tokens
    of its context from 64 times that on."""

    index: int
    n_bytes: int
    data: Bulk
    offset: int = 0
    proof: bytes = b""
    """By which the daemon that coded the chunk knows it again; with the first part."""


@frozen
class ExportedChunks:
    """Coded chunks of a context. Those that were asked for and are not here are not stored: they must be computed."""

    root: bytes
    """Of the context's chunk keys."""
    kv: bytes
    """Fingerprint of model and adapter: where it is the same, chunks can be used."""
    n_kv: int
    """Chunks cover so many of the context's first tokens, stored or not."""
    pieces: tuple[ChunkPiece, ...]
    n_done: int
    """How many of the chunks that were asked for have been dealt with."""
    offset: int
    """Where in the next one to go on; 0: at its beginning."""


@frozen
class MovedTurn:
    """A turn that was asked for with an idempotency key, of a context that goes to another node."""

    key: str
    request: bytes
    """Digest of what was asked."""
    n_tokens: int
    """Tokens of the context at its end."""
    n_spans: int | None = None
    """How many of the context's last spans it is; None: the context went on behind it."""
    done: Done | None = None
    """What the caller was told at the end, besides ``text`` and ``tokens``; None: the answer was interrupted."""
    text: str = ""
    tokens: bytes = b""

    def __post_init__(self) -> None:
        if not 1 <= len(self.key) <= MAX_KEY or not self.key.isprintable():
            raise ValueError(f"field 'key': 1 to {MAX_KEY} printable characters are wanted")
        if len(self.request) != _DIGEST_BYTES:
            raise ValueError(f"field 'request': must have {_DIGEST_BYTES} bytes, not {len(self.request)}")
        if not 0 <= self.n_tokens < 1 << 31 or not 0 <= (self.n_spans or 0) < 1 << 31:
            raise ValueError("fields 'n_tokens', 'n_spans': must be 0 or more, and below 2**31")
        if len(self.tokens) % TOKEN_BYTES:
            raise ValueError(f"field 'tokens': they take {TOKEN_BYTES} bytes each, not {len(self.tokens)} in all")


@frozen
class MovedContext:
    """A context that another node has now."""

    node: str
    name: str
    """What it is called there."""
    n_tokens: int
    n_chunks: int
    """So many chunks went with it, of so many bytes; the others are computed there."""
    n_bytes: int


@frozen
class ImportedChunks:
    """What became of chunks that were sent, and, if none were, which of the context's chunks are not stored."""

    taken: int
    known: int
    """Were stored already."""
    refused: int
    why: str = ""
    """The reason of the last one that was refused."""
    missing: tuple[int, ...] = ()
    """Their indices; of whole chunks only."""
    usable: bool = True
    """Whether chunks of that model and adapter can be used here."""

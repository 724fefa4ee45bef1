"""Coded chunks on their way from one daemon to another, and what became of them.

Law: pure; values only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkPiece:
    """A part of a coded chunk: ``data`` stands at ``offset`` of its ``n_bytes``. ``index``: the chunk holds the tokens
    of its context from 64 times that on."""

    index: int
    n_bytes: int
    data: bytes
    offset: int = 0
    proof: bytes = b""
    """By which the daemon that coded the chunk knows it again; with the first part."""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class MovedContext:
    """A context that another node has now."""

    node: str
    name: str
    """What it is called there."""
    n_tokens: int
    n_chunks: int
    """So many chunks went with it, of so many bytes; the others are computed there."""
    n_bytes: int


@dataclass(frozen=True, slots=True)
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

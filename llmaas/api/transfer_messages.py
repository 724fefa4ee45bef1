"""The requests that take a context from one model or daemon to another: out of the one, into the other.

Law: pure.
"""

from __future__ import annotations

import re
import reprlib

from llmaas.api.names import MAX_MESSAGES, MAX_ROLE, check_context, check_name, check_ttl
from llmaas.api.transfer_records import ChunkPiece
from llmaas.api.wire import MAX_FRAME
from llmaas.frozen import frozen
from llmaas.records import SHORT_NAME, TOKEN_BYTES, ExportedContext

MAX_SPANS = 3 * MAX_MESSAGES
"""Each message may have the chat template's tokens before and behind it."""

MOST_CHUNK_BYTES = MAX_FRAME // 2
"""Of coded chunks in one frame."""
MAX_CHUNKS = 1 << 14
"""Chunks that one request names."""
DIGEST_BYTES = 16
"""Of a root of chunk keys, and of a fingerprint of model and adapter."""


@frozen
class Export:
    """All that a context consists of, for ``Import`` on another model."""

    context: str

    def __post_init__(self) -> None:
        check_context(self.context)


@frozen
class Import:
    """A new context that begins as an exported one; ``name``: another name than that had."""

    exported: ExportedContext
    name: str | None = None
    adapter: str = ""
    ttl: float | None = None

    def __post_init__(self) -> None:
        check_ttl(self.ttl)
        check_name(self.name if self.name is not None else self.exported.name)
        spans = self.exported.spans
        if len(spans) > MAX_SPANS:
            raise ValueError(f"field 'exported.spans': at most {MAX_SPANS} are allowed, not {len(spans)}")
        for i, span in enumerate(spans):
            where = f"field 'exported.spans[{i}]'"
            if len(span.tokens) % TOKEN_BYTES:
                raise ValueError(f"{where}: tokens take {TOKEN_BYTES} bytes each, not {len(span.tokens)} in all")
            if span.role is None:
                continue
            if not 0 < len(span.role) <= MAX_ROLE or not span.role.isprintable():
                raise ValueError(f"{where}: a role has 1 to {MAX_ROLE} characters, not {reprlib.repr(span.role)}")
            if span.text is None:
                raise ValueError(f"{where}: a message has a text")


@frozen
class ExportChunks:
    """Coded chunks of a context, in the order of ``indices``, the first one from ``offset`` on; ``n_bytes`` at most."""

    context: str
    indices: tuple[int, ...] = ()
    offset: int = 0
    n_bytes: int = MOST_CHUNK_BYTES // 2

    def __post_init__(self) -> None:
        check_context(self.context)
        _check_indices(self.indices, "indices")
        if not 0 <= self.offset < 1 << 48:
            raise ValueError("field 'offset': must be 0 or more")
        if not 1 <= self.n_bytes <= MOST_CHUNK_BYTES:
            raise ValueError(f"field 'n_bytes': must be in [1, {MOST_CHUNK_BYTES}]")


@frozen
class ImportChunks:
    """Coded chunks for a context that was imported. ``root`` and ``kv``: as they were exported. ``trusted``: the app
    vouches for the chunks; without it only those are taken that this daemon has coded itself."""

    context: str
    root: bytes
    kv: bytes
    pieces: tuple[ChunkPiece, ...] = ()
    trusted: bool = False

    def __post_init__(self) -> None:
        check_context(self.context)
        for name in ("root", "kv"):
            if len(getattr(self, name)) != DIGEST_BYTES:
                raise ValueError(f"field {name!r}: must have {DIGEST_BYTES} bytes")
        _check_indices(tuple(piece.index for piece in self.pieces), "pieces")
        for i, piece in enumerate(self.pieces):
            if not piece.data or not 0 <= piece.offset <= piece.n_bytes - len(piece.data):
                raise ValueError(f"field 'pieces[{i}]': data must be a part of the chunk")


MOVE_WAYS = ("both", "chunks", "tokens")
"""How the KV of a context comes to be at another node: as coded chunks, computed there from its tokens, or, of one that
is answered, whichever is quicker for each part."""


@frozen
class MoveToNode:
    """Take a context to a paired node; ``name``: what it is called there, if not the same; ``way``: one of
    ``MOVE_WAYS``."""

    context: str
    node: str
    name: str | None = None
    way: str = "both"

    def __post_init__(self) -> None:
        check_context(self.context)
        check_name(self.name)
        if self.way not in MOVE_WAYS:
            raise ValueError(f"field 'way': {reprlib.repr(self.way)} is none of {', '.join(MOVE_WAYS)}")
        if not re.fullmatch(SHORT_NAME, self.node):
            raise ValueError(f"field 'node': {reprlib.repr(self.node)} is no name of a node")


def _check_indices(indices: tuple[int, ...], name: str) -> None:
    if len(indices) > MAX_CHUNKS:
        raise ValueError(f"field {name!r}: at most {MAX_CHUNKS} are allowed, not {len(indices)}")
    if any(not 0 <= index < 1 << 48 for index in indices):
        raise ValueError(f"field {name!r}: a chunk's index must be 0 or more")


TransferRequest = Export | Import | ExportChunks | ImportChunks | MoveToNode
TRANSFER_OPERATIONS: dict[str, type[TransferRequest]] = {
    "export": Export,
    "import": Import,
    "export_chunks": ExportChunks,
    "import_chunks": ImportChunks,
    "move": MoveToNode,
}

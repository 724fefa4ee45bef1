"""Chunks that come in parts, put together.

Law: for one event loop. What is held of unfinished chunks is bounded: one of an app, and four in all; the oldest goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from llmaas.api.bulk import Bulk
from llmaas.api.transfer_records import ChunkPiece
from llmaas.errors import ChunkDamaged
from llmaas.frozen import frozen
from llmaas.kvchunks.codec.codec import Codec, read_header
from llmaas.records import CHUNK_TOKENS, LOSSLESS, AppId, ContextId

_MOST = 4


@frozen
class WholeChunk:
    """``n_tokens``: as its header says; nothing of it has been checked."""

    index: int
    data: Bulk
    proof: bytes
    n_tokens: int


@frozen
class _Unfinished:
    context: ContextId
    first: ChunkPiece
    data: bytearray


class ChunkParts:
    def __init__(self, codec: Codec) -> None:
        self._most_bytes = codec.encoded_size(CHUNK_TOKENS, LOSSLESS)
        """Of a coded chunk."""
        self._unfinished = OrderedDict[AppId, _Unfinished]()

    def whole(self, app: AppId, context: ContextId, pieces: Sequence[ChunkPiece]) -> list[WholeChunk]:
        """The chunks that these parts complete. What cannot be put together is left out, as a chunk without tokens."""
        found = []
        for piece in pieces:
            if piece.offset == 0 and len(piece.data) == piece.n_bytes:
                found.append(_chunk(piece, piece.data))
            elif piece.n_bytes > self._most_bytes:
                found.append(WholeChunk(piece.index, b"", b"", 0))
            elif (done := self._add(app, context, piece)) is not None:
                found.append(done)
        return found

    def _add(self, app: AppId, context: ContextId, piece: ChunkPiece) -> WholeChunk | None:
        if piece.offset == 0:
            self._unfinished.pop(app, None)
            self._unfinished[app] = _Unfinished(context, piece, bytearray(piece.data))
            while len(self._unfinished) > _MOST:
                self._unfinished.popitem(last=False)
            return None
        begun = self._unfinished.get(app)
        if begun is None or (begun.context, begun.first.index, begun.first.n_bytes, len(begun.data)) != (
            context,
            piece.index,
            piece.n_bytes,
            piece.offset,
        ):
            return WholeChunk(piece.index, b"", b"", 0)
        begun.data.extend(piece.data)
        if len(begun.data) < piece.n_bytes:
            return None
        del self._unfinished[app]
        return _chunk(begun.first, bytes(begun.data))


def _chunk(first: ChunkPiece, data: Bulk) -> WholeChunk:
    try:
        n_tokens = read_header(data).n_tokens
    except ChunkDamaged:
        n_tokens = 0
    return WholeChunk(first.index, data, first.proof, n_tokens)

"""Which contexts a node holds, in few bytes: marks of some of their chunk keys.

Law: pure. A chunk key is chained to all keys before it (``kvchunks.keys``), so that one key says which tokens all
chunks up to it hold. A context is marked at its last full chunk, at its chunks 1, 2 and 4, and at each 8th: who asks
for the same context finds the last mark, and who only begins with the same tokens finds a mark at most seven chunks
before the place where they part. A mark is the first 8 bytes of a key: among ten million marks, one lookup in a million
million takes one for another. That makes an estimate wrong, and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from llmaas.frozen import frozen
from llmaas.records import CHUNK_TOKENS, ChunkKey

MARK_BYTES = 8
MOST_MARKS = 1 << 24
"""Of one node: as many as a million contexts have that share nothing."""
_EARLY, _STRIDE = (1, 2, 4), 8


def chain_marks(keys: Iterable[ChunkKey]) -> tuple[int, ...]:
    """The mark of each full chunk of a context, from the first chunk on: what is looked up."""
    return tuple(int.from_bytes(key[:MARK_BYTES], "little") for key in keys)


def kept_marks(chain: Sequence[int]) -> tuple[int, ...]:
    """Those of a context's marks that a node reports.

    >>> kept_marks(range(1, 21))
    (1, 2, 4, 8, 16, 20)
    """
    return tuple(chain[i] for i in kept_indices(len(chain)))


def kept_indices(n_chunks: int) -> list[int]:
    """Which of a context's chunks are marked.

    >>> kept_indices(20)
    [0, 1, 3, 7, 15, 19]
    """
    found = {n - 1 for n in _EARLY if n <= n_chunks}
    found.update(range(_STRIDE - 1, n_chunks, _STRIDE))
    return sorted(found | {n_chunks - 1}) if n_chunks else []


def packed(marks: Iterable[int]) -> bytes:
    """
    >>> unpacked(packed([3, 1]))
    (3, 1)
    """
    values = tuple(marks)
    return struct.pack(f"<{len(values)}Q", *values)


def unpacked(marks: bytes) -> tuple[int, ...]:
    """Raises ValueError if they cannot be that."""
    n, rest = divmod(len(marks), MARK_BYTES)
    if rest or n > MOST_MARKS:
        raise ValueError(f"marks of contexts: {len(marks)} bytes are not at most {MOST_MARKS} marks of {MARK_BYTES}")
    return struct.unpack(f"<{n}Q", marks)


@frozen
class ContextMarks:
    """What a node says of the contexts that it holds.

    >>> marks = ContextMarks.of([range(1, 21)])
    >>> marks.held(range(1, 31))  # tokens
    1280
    >>> marks.held([1, 2, 3, 4, 5, 6, 99])  # parted after six chunks: four are sure
    256
    """

    marks: frozenset[int] = frozenset()

    @classmethod
    def of(cls, chains: Iterable[Sequence[int]]) -> ContextMarks:
        """``chains``: of each context, the marks of all its full chunks."""
        return cls(frozenset(mark for chain in chains for mark in kept_marks(chain)))

    @classmethod
    def from_bytes(cls, packed_marks: bytes) -> ContextMarks:
        """What ``to_bytes`` gave. Raises ValueError if it cannot be that."""
        return cls(frozenset(unpacked(packed_marks)))

    def to_bytes(self) -> bytes:
        return packed(sorted(self.marks))

    def held(self, chain: Sequence[int]) -> int:
        """How many of the first tokens of a context are held here, as far as marks tell. ``chain``: ``chain_marks``."""
        if self.marks.isdisjoint(chain):
            return 0
        return next(n for n in range(len(chain), 0, -1) if chain[n - 1] in self.marks) * CHUNK_TOKENS

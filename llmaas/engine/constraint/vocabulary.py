"""A model's tokens as bytes, as constraints see them.

Law: immutable once prepared, and then safe on any thread. Tokens without bytes are never part of a constrained answer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llmaas.frozen import frozen


class Vocabulary:
    """``read_piece``: the bytes of a token, b"" for special ones; ``read_end``: whether it ends an answer.

    Both are called once for each token, by ``prepare``: 0.2 s and 4 MB for 49,152 tokens. Everything else needs that
    first.
    """

    def __init__(self, n_vocab: int, read_piece: Callable[[int], bytes], read_end: Callable[[int], bool]) -> None:
        self.n_vocab = n_vocab
        self._read_piece, self._read_end = read_piece, read_end
        self.ends: list[int] = []
        """The tokens that end an answer."""
        self.pieces: list[bytes] = []
        """The bytes of each token; b"" for those that end an answer, too."""
        self.levels: list[TrieLevel] = []
        """The pieces that are not empty as a trie, level by level."""

    def prepare(self) -> None:
        """Read all tokens. On one thread."""
        if not self.pieces:
            self.ends = [token for token in range(self.n_vocab) if self._read_end(token)]
            pieces = [self._read_piece(token) for token in range(self.n_vocab)]
            for token in self.ends:
                pieces[token] = b""
            self.levels = _levels(pieces)
            self.pieces = pieces

    def is_end(self, token: int) -> bool:
        return token in self.ends


@frozen
class TrieLevel:
    """The nodes of a trie that are as many bytes deep: beginnings of tokens, one for equal beginnings."""

    parents: npt.NDArray[np.intp]
    """For each node its parent's index in the level before."""
    byte: npt.NDArray[np.uint8]
    """For each node its last byte."""
    tokens: npt.NDArray[np.int32]
    """The tokens that end at this level."""
    at: npt.NDArray[np.intp]
    """For each of those its node's index."""


def _levels(pieces: list[bytes]) -> list[TrieLevel]:
    """See ``Vocabulary.levels``."""
    tokens = np.array([token for token, piece in enumerate(pieces) if piece], np.int32)
    lengths = np.array([len(pieces[token]) for token in tokens], np.int32)
    text, starts = np.frombuffer(b"".join(pieces), np.uint8), np.cumsum(lengths) - lengths
    nodes = np.zeros(len(tokens), np.intp)
    """For each token the node that its bytes so far lead to."""
    levels: list[TrieLevel] = []
    while len(tokens):
        keys, nodes = np.unique(nodes * 256 + text[starts + len(levels)], return_inverse=True)
        ends = lengths == len(levels) + 1
        levels.append(TrieLevel(keys // 256, (keys % 256).astype(np.uint8), tokens[ends], nodes[ends]))
        tokens, lengths, starts, nodes = (array[~ends] for array in (tokens, lengths, starts, nodes))
    return levels

"""A model's tokens as bytes, as constraints see them.

Law: immutable once prepared, and then safe on any thread. Tokens without bytes are never part of a constrained answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property


class Vocabulary:
    """``read_piece``: the bytes of a token, b"" for special ones; ``read_end``: whether it ends an answer.

    Both are called once for each token, by ``prepare``: some tenths of a second for a large vocabulary. Everything else
    needs that first.
    """

    def __init__(self, n_vocab: int, read_piece: Callable[[int], bytes], read_end: Callable[[int], bool]) -> None:
        self.n_vocab = n_vocab
        self._read_piece, self._read_end = read_piece, read_end
        self.ends: list[int] = []
        """The tokens that end an answer."""
        self.pieces: list[bytes] = []
        """The bytes of each token; b"" for those that end an answer, too."""

    def prepare(self) -> None:
        """Read all tokens. On one thread."""
        if not self.pieces:
            self.ends = [token for token in range(self.n_vocab) if self._read_end(token)]
            pieces = [self._read_piece(token) for token in range(self.n_vocab)]
            for token in self.ends:
                pieces[token] = b""
            self.pieces = pieces

    def is_end(self, token: int) -> bool:
        return token in self.ends

    @cached_property
    def ordered(self) -> tuple[list[bytes], list[int]]:
        """The pieces that are not empty in ascending order, and their tokens."""
        tokens = sorted((token for token, piece in enumerate(self.pieces) if piece), key=self.pieces.__getitem__)
        return [self.pieces[token] for token in tokens], tokens

"""Embeddings of the fake engine: texts with many tokens in common have vectors that are near each other.

Law: a text's vector is a function of its tokens alone, however they are sliced.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from llmaas.engine.base import EmbeddingFacts
from llmaas.engine.rules import check_embed
from llmaas.kv_arrays import F32

FACTS = EmbeddingFacts(width=32, limit=512, slice_tokens=64)


class FakeEmbedding:
    """The text that is being embedded: its vector is the sum of its tokens' vectors, which are drawn by their ids."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self._sum = np.zeros(FACTS.width)
        self._length = 0

    def check(self, pos: int, tokens: Sequence[int]) -> None:
        check_embed(FACTS, pos, tokens, self._length, self._n_vocab)

    def add(self, pos: int, tokens: Sequence[int]) -> F32:
        if pos == 0:
            self.clear()
        for token in tokens:
            self._sum = self._sum + _vector(token)
        self._length += len(tokens)
        return (self._sum / np.linalg.norm(self._sum)).astype(np.float32)

    def clear(self) -> None:
        self._sum, self._length = np.zeros(FACTS.width), 0


@functools.cache
def _vector(token: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.random.default_rng(token).standard_normal(FACTS.width)

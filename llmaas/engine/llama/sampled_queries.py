"""Queries of a few tokens of each sequence, and what all of them together say about keys.

Law: which tokens are sampled is a function of their positions alone, so two runs of one context sample the same.

How much an error in a key or value matters depends on the queries that will meet it, and the best guess at those is the
recent ones. One token in twelve is enough to rank chunks and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from llmaas.kv_arrays import F16, F32, Queries, Rope

EVERY = 12
"""Of so many positions one is sampled: a step that is sampled takes up to 4 % longer (SmolLM2, 2 threads)."""
MOST = 96
"""Queries kept of a sequence."""
ENOUGH = 64
"""Queries that must be seen before their mean says anything."""
_LEAST_WEIGHT = 1e-6
_TOO_LARGE = 65520.0
"""The least number that f16 rounds to infinity."""


def as_halves(values: F32) -> F16:
    return values.astype(np.float16)


def sampled(start: int, stop: int) -> Iterator[int]:
    """The sampled positions in start .. stop-1, ascending.

    They are one of every twelve, chosen by a multiplicative hash of the twelve's number (Knuth, TAOCP 3, 6.4). Position
    0 is not among them: its queries are like no other's.
    """
    for block in range(start // EVERY, -(-stop // EVERY)):
        position = EVERY * block + (((block + 1) * 0x9E3779B1 & 0xFFFFFFFF) * EVERY >> 32)
        if start <= position < stop:
            yield position


class SampledQueries:
    """The sampled queries of one engine, by sequence.

    ``shape``: (n_layer, n_head, head_dim) of one token's queries; ``kv_heads``: heads of keys, which divide n_head.

    A query takes n_layer x n_head x head_dim x 2 bytes (34 KB in SmolLM2-135M, 86 KB in Qwen2.5-1.5B); at most ``MOST``
    of them are kept of a sequence until they are taken, which only sequences with a running call come near to.
    """

    def __init__(self, shape: tuple[int, int, int], kv_heads: int, halves: Callable[[F32], F16] = as_halves) -> None:
        """``halves`` rounds as numpy does: of a token's queries it may take numpy longer than all else here."""
        self._shape, self._kv_heads, self._halves = shape, kv_heads, halves
        self._kept: dict[int, list[tuple[int, F16]]] = {}
        self._squares = np.zeros(shape, np.float64)
        """Sum over all queries seen."""
        self._seen = 0

    def add(self, found: list[tuple[int, int]], values: F32) -> None:
        """Keep the queries ``values`` (n, *shape) of these n sequences and positions; positions only grow.

        Those that f16 cannot hold are left out: one NaN would make the mean over all of them NaN.
        """
        for (seq, position), value in zip(found, values, strict=True):  # one by one: all at once takes megabytes
            if not -_TOO_LARGE < value.min() <= value.max() < _TOO_LARGE:  # a NaN is neither
                continue
            half = self._halves(value)
            self._squares += np.square(value)
            self._seen += 1
            kept = self._kept.setdefault(seq, [])
            kept.append((position, half))
            if len(kept) > MOST:
                del kept[-2::-2]

    def drop(self, seq: int, start: int) -> None:
        """Forget the sequence's queries at positions from ``start`` on."""
        kept = self._kept.get(seq)
        while kept and kept[-1][0] >= start:
            kept.pop()

    def take(self, seq: int) -> Queries | None:
        """The sequence's queries, which are then forgotten; None if there are none."""
        kept = self._kept.pop(seq, None)
        if not kept:
            return None
        return Queries(np.array([position for position, _ in kept], np.int32), np.stack([value for _, value in kept]))

    def key_weights(self, rope: Rope | None) -> F32 | None:
        """Root mean square (n_layer, k_dim) of all queries seen, in the channels of the keys that they meet.

        Over the heads that share a key, and over both channels of a rotary pair, which RoPE mixes. Positive.
        None until ``ENOUGH`` were seen.
        """
        if self._seen < ENOUGH:
            return None
        layers, heads, dim = self._shape
        by_key_head = (self._squares / self._seen).reshape(layers, self._kv_heads, heads // self._kv_heads, dim)
        squares = by_key_head.mean(axis=2)
        if rope is not None:
            first, second = _channels_of_pairs(squares, rope)
            first[:] = second[:] = (first + second) / 2
        weights = np.maximum(np.sqrt(squares), _LEAST_WEIGHT).astype(np.float32)
        return np.asarray(weights.reshape(layers, -1))


def _channels_of_pairs(
    channels: npt.NDArray[np.float64], rope: Rope
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Views of the first and of the second channels of each head's rotary pairs."""
    n = rope.angles.shape[1]
    if rope.halves:
        return channels[..., :n], channels[..., n : 2 * n]
    return channels[..., 0 : 2 * n : 2], channels[..., 1 : 2 * n : 2]

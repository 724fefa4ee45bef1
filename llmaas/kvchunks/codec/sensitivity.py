"""How sensitive a chunk is: the change of the attention output when the chunk alone is coded.

Law: pure, and streaming. The KV of a context is read twice, one chunk at a time: ``add`` every chunk, then ``measure``
any of them. Only a few sums per sampled query are kept in between.

For a query q of one layer and head, the attention output is o = A / S, with S = sum e^(q.k) and A = sum e^(q.k) v over
the keys that q sees. A chunk is a summand of both. So other keys in it change o by (dA - o dS) / (S + dS), and other
values by dA / S.

Only queries that see the whole chunk count. Counting the others as unchanged makes late chunks look insensitive: the
rank correlation with the error of later queries is then 0.27 for K, and 0.87 without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from llmaas.kv_arrays import F16, F32, KvSlab, Queries
from llmaas.records import ChunkSensitivity, Geometry, Precision

REFERENCE = Precision(3, 3)
"""The precision at which sensitivity is measured. Errors at other bits follow fixed curves (``policies.bit_price``)."""
MEMORY = 512
"""Tokens after which the weight of a query has fallen to 1/e: recent queries predict the next ones best."""
ROOT = 4
"""The mean over queries is a power mean with exponent 1 / ROOT. Changes spread over orders of magnitude, and in a plain
mean of a hundred queries one of them dominates. Against an allocation that knows the future queries, allocating bits by
plain means left 1.4 times the error, by this mean 1.2 times, and the same bits for all chunks 1.7 to 2.2 times (12
contexts of SmolLM2-135M, 96 queries)."""
FEWEST = 4
"""Least number of queries that must see a chunk for it to be measured."""
LAYER_STEP = 3
"""Only every third layer is measured: it ranks chunks nearly as all layers do. Counting from the last layer includes
the global layers of models that have one in six (Gemma 3)."""

_LARGEST_LOG = 60.0
"""The logit of a coded key is capped at so much above the largest true one: e^60 leaves room in float32 for sums and
products."""
_TINY = np.float32(1e-30)


def merged(one: ChunkSensitivity, other: ChunkSensitivity) -> ChunkSensitivity:
    """Two measurements of one chunk as one, as if all their queries had been measured together at the later time."""
    at = max(one.at, other.at)
    mine = one.weight * math.exp((one.at - at) / MEMORY)
    weight = mine + other.weight * math.exp((other.at - at) / MEMORY)
    share = mine / weight if weight > 0 else 0.5
    return ChunkSensitivity(
        k=(share * one.k ** (1 / ROOT) + (1 - share) * other.k ** (1 / ROOT)) ** ROOT,
        v=(share * one.v ** (1 / ROOT) + (1 - share) * other.v ** (1 / ROOT)) ** ROOT,
        density=share * one.density + (1 - share) * other.density,
        weight=weight,
        at=at,
    )


class Scorer:
    """Measures chunks of one sequence by queries that were sampled from it.

    Takes 8 bytes x queries x measured layers x heads x head dimension. One layer is computed after the other: all at
    once take 12 MB of scratch memory with SmolLM2-135M, and 18 MB with Qwen2.5-1.5B.
    """

    def __init__(
        self, geometry: Geometry, queries: Queries, *, layer_step: int = LAYER_STEP, windows: tuple[int, ...] = ()
    ) -> None:
        """``windows``: tokens that each layer attends to, the query's own included (sliding windows); 0 or (): all.

        Raises ValueError for queries of another geometry.
        """
        n, n_layer, n_head, head_dim = queries.values.shape
        kv_heads = geometry.k_dim // geometry.head_dim_k
        if (n_layer, head_dim) != (geometry.n_layer, geometry.head_dim_k) or n_head % kv_heads:
            raise ValueError(f"queries of shape {queries.values.shape} do not fit {geometry}")
        self._geometry = geometry
        self._positions = queries.positions
        self._layers = slice((n_layer - 1) % layer_step, None, layer_step)
        self._windows = np.array(windows or (0,) * n_layer)[self._layers]
        self._group = n_head // kv_heads
        """Query heads for each KV head. They are columns of one matrix (column = query x group + head), since numpy
        adds and compares rows many times faster than it reduces within a row."""
        grouped = queries.values[:, self._layers].reshape(n, -1, kv_heads, self._group, head_dim)
        columns = grouped.transpose(1, 2, 4, 0, 3).reshape(-1, kv_heads, head_dim, n * self._group)
        self._q: F32 = columns.astype(np.float32) / np.float32(math.sqrt(head_dim))
        shape = (*self._q.shape[:2], 1, n * self._group)
        self._max = np.full(shape, -1e30, np.float32)
        self._sum = np.zeros(shape, np.float32)
        self._out = np.zeros((*shape[:2], geometry.head_dim_v, shape[3]), np.float32)

    def add(self, start: int, slab: KvSlab) -> None:
        """First pass: add every chunk up to the last query, each once, in any order.

        ``slab`` holds positions ``start`` .. ``start + n_tokens - 1``. A query sees its own position.
        """
        first = self._first(start)
        if first == self._q.shape[3]:
            return
        for at in self._each_layer():
            self._add(at, start, slab, first)

    def _add(self, at: slice, start: int, slab: KvSlab, first: int) -> None:
        logits = self._logits(at, start, self._keys(slab, at), first)
        old, total, out = (x[at, ..., first:] for x in (self._max, self._sum, self._out))
        new = np.maximum(old, logits.max(axis=2, keepdims=True))
        shrink = np.exp(old - new)
        logits -= new
        seen = np.exp(logits, out=logits)
        total *= shrink
        total += seen.sum(axis=2, keepdims=True)
        out *= shrink
        out += self._values(slab, at).swapaxes(2, 3) @ seen
        old[:] = new

    def measure(self, start: int, slab: KvSlab, coded: KvSlab) -> ChunkSensitivity | None:
        """Second pass: the change of attention if the chunk's keys, or its values, are replaced by those of ``coded``.

        None if fewer than FEWEST queries come after the chunk.
        """
        behind = self._positions[np.searchsorted(self._positions, start + slab.n_tokens) :]
        if len(behind) < FEWEST:
            return None
        first, n = self._first(start), len(behind) * self._group
        share = np.zeros(slab.n_tokens, np.float64)
        changes = []
        for layer in self._each_layer():
            keys = self._keys(slab, layer)
            logits = self._logits(layer, start, keys, first)
            logits -= self._max[layer, ..., first:]
            seen = np.exp(logits)
            share += self._share(layer, seen, first)
            changes.append(self._changes(layer, slab, coded, keys, logits[..., -n:], seen[..., -n:]))
        k, v = (np.concatenate(found).mean(axis=0) for found in zip(*changes, strict=True))
        density = self._density(start, share)
        at = int(self._positions[-1]) + 1
        weights = np.exp((behind - at) / MEMORY)
        weight = float(weights.sum())
        k_mean, v_mean = (float(weights @ x ** (1 / ROOT) / weight) ** ROOT for x in (k, v))
        return ChunkSensitivity(k_mean, v_mean, density, weight, at)

    def _each_layer(self) -> Iterator[slice]:
        """Slices of one measured layer each."""
        return (slice(i, i + 1) for i in range(len(self._q)))

    def _changes(self, at: slice, slab: KvSlab, coded: KvSlab, keys: F32, logits: F32, seen: F32) -> tuple[F32, F32]:
        """Relative squared change of the attention output, (layers, queries), for other keys and for other values."""
        n = logits.shape[3]
        total = np.maximum(self._sum[at, ..., -n:], _TINY)
        out = self._out[at, ..., -n:] / total
        values = self._values(slab, at)
        logits += (self._keys(coded, at) - keys) @ self._q[at, ..., -n:]
        now = np.exp(np.minimum(logits, _LARGEST_LOG, out=logits), out=logits)
        least = now.sum(axis=2, keepdims=True)
        now -= seen
        moved = now.sum(axis=2, keepdims=True)
        # S + dS, but no less than what the coded chunk alone adds: rounding could make it so.
        by_keys = (values.swapaxes(2, 3) @ now - out * moved) / np.maximum(np.maximum(total + moved, least), _TINY)
        by_values = (self._values(coded, at) - values).swapaxes(2, 3) @ seen / total
        norm = np.maximum(self._squares(out), _TINY)
        k = np.asarray(self._squares(by_keys) / norm, np.float32)
        v = np.asarray(self._squares(by_values) / norm, np.float32)
        return k, v

    def _share(self, at: slice, seen: F32, first: int) -> F32:
        """The attention that each token gets from all queries, summed over heads and layers."""
        inverse = 1 / np.maximum(self._sum[at, ..., first:], _TINY)
        summed: F32 = (seen @ inverse.swapaxes(2, 3)).sum(axis=(0, 1, 3))
        return summed

    def _density(self, start: int, share: npt.NDArray[np.float64]) -> float:
        """D_i of LLMS: the mean attention of the queries that see a token, averaged over the tokens that any sees."""
        n_layer, kv_heads = self._q.shape[:2]
        share = share / (n_layer * kv_heads * self._group)
        n_seeing = len(self._positions) - np.searchsorted(self._positions, start + np.arange(len(share)))
        return float((share[n_seeing > 0] / n_seeing[n_seeing > 0]).mean())

    def _first(self, position: int) -> int:
        """Column of the first query at ``position`` or after it."""
        column: int = np.searchsorted(self._positions, position) * self._group
        return column

    def _logits(self, at: slice, start: int, keys: F32, first: int) -> F32:
        """q.k, shape (layers, KV heads, tokens, columns from ``first`` on); -inf where a query does not see a token."""
        logits: F32 = keys @ self._q[at, ..., first:]
        positions = self._positions[first // self._group :].repeat(self._group)
        age = positions - (start + np.arange(keys.shape[2]))[:, None]
        n_inside = np.searchsorted(age[-1], 0)
        logits[..., :n_inside][..., age[:, :n_inside] < 0] = -np.inf
        windows = self._windows[at]
        for layer in np.flatnonzero(windows):
            logits[layer][..., age >= windows[layer]] = -np.inf
        return logits

    def _squares(self, x: Any) -> F32:
        """(layers, KV heads, head dimension, columns) to (layers, queries): sums of squares."""
        heads = np.square(x).sum(axis=(1, 2))
        summed: F32 = heads.reshape(len(heads), -1, self._group).sum(axis=2)
        return summed

    def _keys(self, slab: KvSlab, at: slice) -> F32:
        return self._heads(slab.k, at, self._geometry.head_dim_k)

    def _values(self, slab: KvSlab, at: slice) -> F32:
        return self._heads(slab.v, at, self._geometry.head_dim_v)

    def _heads(self, x: F16, at: slice, head_dim: int) -> F32:
        """(all layers, tokens, dim) f16 to (layers ``at``, KV heads, tokens, head dimension) float32."""
        picked = x[self._layers][at].astype(np.float32)
        return picked.reshape(*picked.shape[:2], -1, head_dim).transpose(0, 2, 1, 3)

"""How much the precision of a chunk matters: what attention makes of it as it is, and as it would be coded.

Law: pure, and streaming. A context's KV is gone through twice, one chunk at a time (``add`` all, then ``measure`` any);
what is kept in between are a few sums per sampled query. Only queries that see the whole chunk are asked: counting the
others as undisturbed makes late chunks look tolerant (rank correlation with what later queries suffer, for K: 0.27;
without them 0.87).

Per query q, layer and head, attention is o = A / S with S = sum e^(q.k) and A = sum e^(q.k) v over the keys seen. A
chunk adds to both sums on its own, so new keys for it change o by (dA - o dS) / (S + dS), and new values by dA / S.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmaas.records import F16, F32, ChunkSensitivity, Geometry, KvSlab, Precision, Queries

REFERENCE = Precision(3, 3)
"""Where sensitivity is measured. Errors at other bits follow fixed curves (``policies.bit_price``)."""
MEMORY = 512
"""Tokens after which a query counts 1/e: what was asked lately says most about what will be asked."""
ROOT = 4
"""The mean over queries is a power mean, of fourth roots: changes spread over orders of magnitude, and in a plain mean
of a hundred queries one is most of it. Bits shared out by plain means left 1.4 times the error that knowing the
future would leave, by these 1.2 times (12 contexts of SmolLM2-135M, 96 queries; the same bits for all: 1.7 to 2.2)."""
FEWEST = 4
"""Queries that must see a chunk for it to be measured."""
LAYER_STEP = 3
"""Every third layer ranks chunks nearly as all of them do. Counted from the last, which finds the global layers of
models that have one in six (Gemma 3)."""

_LARGEST_LOG = 60.0
"""A coded key's logit above the largest true one is cut here: e^60 leaves room in float32 for sums and products."""
_TINY = np.float32(1e-30)


def merged(one: ChunkSensitivity, other: ChunkSensitivity) -> ChunkSensitivity:
    """Two measurements of one chunk as one, as if their queries had been asked together at the later time."""
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
    """Measures chunks of one sequence by queries sampled from it.

    Memory: 8 bytes x queries x measured layers x heads x head dimension, and some chunks' worth while it works.
    """

    def __init__(
        self, geometry: Geometry, queries: Queries, *, layer_step: int = LAYER_STEP, windows: tuple[int, ...] = ()
    ) -> None:
        """``windows``: how many tokens each layer looks back, itself included; 0 or nothing: all of them.

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
        """Query heads of a KV head. They are columns of one matrix, query by query (column = query x group + head),
        since numpy adds and compares rows many times faster than it does within a row."""
        grouped = queries.values[:, self._layers].reshape(n, -1, kv_heads, self._group, head_dim)
        columns = grouped.transpose(1, 2, 4, 0, 3).reshape(-1, kv_heads, head_dim, n * self._group)
        self._q: F32 = columns.astype(np.float32) / np.float32(math.sqrt(head_dim))
        shape = (*self._q.shape[:2], 1, n * self._group)
        self._max = np.full(shape, -1e30, np.float32)
        self._sum = np.zeros(shape, np.float32)
        self._out = np.zeros((*shape[:2], geometry.head_dim_v, shape[3]), np.float32)

    def add(self, start: int, slab: KvSlab) -> None:
        """First pass, each chunk once and in any order: every chunk up to the last query, which sees itself.

        ``slab`` holds positions ``start`` .. ``start + n_tokens - 1``.
        """
        first = self._first(start)
        if first == self._q.shape[3]:
            return
        logits = self._logits(start, self._keys(slab), first)
        old, total, out = self._max[..., first:], self._sum[..., first:], self._out[..., first:]
        new = np.maximum(old, logits.max(axis=2, keepdims=True))
        shrink = np.exp(old - new)
        logits -= new
        seen = np.exp(logits, out=logits)
        total *= shrink
        total += seen.sum(axis=2, keepdims=True)
        out *= shrink
        out += self._values(slab).swapaxes(2, 3) @ seen
        old[:] = new

    def measure(self, start: int, slab: KvSlab, coded: KvSlab) -> ChunkSensitivity | None:
        """Second pass: how attention changes if the chunk's keys, or its values, become those of ``coded``.

        None if fewer than FEWEST queries lie behind the chunk.
        """
        behind = self._positions[np.searchsorted(self._positions, start + slab.n_tokens) :]
        if len(behind) < FEWEST:
            return None
        keys, first = self._keys(slab), self._first(start)
        logits = self._logits(start, keys, first)
        logits -= self._max[..., first:]
        seen = np.exp(logits)
        density = self._density(start, seen, first)
        n = len(behind) * self._group
        k, v = self._changes(slab, coded, keys, logits[..., -n:], seen[..., -n:])
        at = int(self._positions[-1]) + 1
        weights = np.exp((behind - at) / MEMORY)
        weight = float(weights.sum())
        k_mean, v_mean = (float(weights @ x ** (1 / ROOT) / weight) ** ROOT for x in (k, v))
        return ChunkSensitivity(k_mean, v_mean, density, weight, at)

    def _changes(self, slab: KvSlab, coded: KvSlab, keys: F32, logits: F32, seen: F32) -> tuple[F32, F32]:
        """Relative squared change per query, for keys and for values."""
        n = logits.shape[3]
        total = np.maximum(self._sum[..., -n:], _TINY)
        out = self._out[..., -n:] / total
        values = self._values(slab)
        logits += (self._keys(coded) - keys) @ self._q[..., -n:]
        now = np.exp(np.minimum(logits, _LARGEST_LOG, out=logits), out=logits)
        least = now.sum(axis=2, keepdims=True)
        now -= seen
        moved = now.sum(axis=2, keepdims=True)
        # Rounding must not leave less than what the chunk itself still adds.
        by_keys = (values.swapaxes(2, 3) @ now - out * moved) / np.maximum(np.maximum(total + moved, least), _TINY)
        by_values = (self._values(coded) - values).swapaxes(2, 3) @ seen / total
        norm = np.maximum(self._squares(out), _TINY)
        return (self._squares(by_keys) / norm).mean(axis=0), (self._squares(by_values) / norm).mean(axis=0)

    def _density(self, start: int, seen: F32, first: int) -> float:
        """Mean over the chunk's tokens that a query sees of the mean attention of those queries."""
        n_layer, kv_heads, n_tokens, _ = seen.shape
        inverse = 1 / np.maximum(self._sum[..., first:], _TINY)
        share = (seen @ inverse.swapaxes(2, 3)).sum(axis=(0, 1, 3)) / (n_layer * kv_heads * self._group)
        n_seeing = len(self._positions) - np.searchsorted(self._positions, start + np.arange(n_tokens))
        return float((share[n_seeing > 0] / n_seeing[n_seeing > 0]).mean())

    def _first(self, position: int) -> int:
        """Column of the first query at ``position`` or behind it."""
        column: int = np.searchsorted(self._positions, position) * self._group
        return column

    def _logits(self, start: int, keys: F32, first: int) -> F32:
        """q.k, shape (layers, KV heads, tokens, columns from ``first`` on); -inf where a query does not see a token."""
        logits: F32 = keys @ self._q[..., first:]
        positions = self._positions[first // self._group :].repeat(self._group)
        age = positions - (start + np.arange(keys.shape[2]))[:, None]
        n_inside = np.searchsorted(age[-1], 0)
        logits[..., :n_inside][..., age[:, :n_inside] < 0] = -np.inf
        for layer in np.flatnonzero(self._windows):
            logits[layer][..., age >= self._windows[layer]] = -np.inf
        return logits

    def _squares(self, x: Any) -> F32:
        """(layers, KV heads, head dimension, columns) to (layers, queries): sums of squares."""
        heads = np.square(x).sum(axis=(1, 2))
        summed: F32 = heads.reshape(len(heads), -1, self._group).sum(axis=2)
        return summed

    def _keys(self, slab: KvSlab) -> F32:
        return self._heads(slab.k, self._geometry.head_dim_k)

    def _values(self, slab: KvSlab) -> F32:
        return self._heads(slab.v, self._geometry.head_dim_v)

    def _heads(self, x: F16, head_dim: int) -> F32:
        """(all layers, tokens, dim) f16 to (layers, KV heads, tokens, head dimension) float32."""
        picked = x[self._layers].astype(np.float32)
        return picked.reshape(*picked.shape[:2], -1, head_dim).transpose(0, 2, 1, 3)

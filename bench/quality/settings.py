"""Settings: ways to choose how many bits each chunk of a context gets.

Law: a setting sees what the service would know at that moment: the chunks, and queries sampled while they were
computed; nothing that comes later. The choices are the product's own policies; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from llmaas.kv_arrays import KvSlab, Queries
from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.kvchunks.codec.sensitivity import REFERENCE, Scorer
from llmaas.policies.bit_price import allocate
from llmaas.policies.bit_price.llms import llms
from llmaas.records import CHUNK_TOKENS, ChunkKey, ChunkSensitivity, Precision

_KEY = ChunkKey(bytes(16))
UNIFORM = ((8, 8), (6, 6), (5, 5), (4, 4), (4, 3), (3, 4), (3, 3), (3, 2), (2, 3), (2, 2))
UNIFORM_QUICK = ((8, 8), (4, 4), (3, 4), (3, 3), (2, 3), (3, 2))
BUDGETS = (2.9, 3.0, 3.4, 3.5, 3.9, 4.0, 4.4)
BUDGETS_QUICK = (3.0, 3.5, 4.0, 4.4)
LLMS_BUDGETS = (3.0, 3.5, 4.0, 4.4)
LLMS_BUDGETS_QUICK = (4.0,)
"""True bits per value, everything counted."""


class Prefix:
    """The full chunks of a context's beginning, and queries of tokens in them."""

    def __init__(self, slabs: Sequence[KvSlab], queries: Queries | None, codec: Codec) -> None:
        self.slabs = slabs
        self.codec = codec
        self._queries = queries

    @cached_property
    def sensitivities(self) -> list[ChunkSensitivity | None]:
        """How much each chunk's K and V matter; None where too few queries see it."""
        if self._queries is None:
            raise RuntimeError("the engine samples no queries: is its C extension built?")
        scorer = Scorer(self.codec.geometry, self._queries)
        for i, slab in enumerate(self.slabs):
            scorer.add(i * CHUNK_TOKENS, slab)
        found = []
        for i, slab in enumerate(self.slabs):
            start = i * CHUNK_TOKENS
            payload = self.codec.encode(slab, REFERENCE, _KEY, sinks_at(start))
            found.append(scorer.measure(start, slab, self.codec.decoded(payload, _KEY)))
        return found

    @property
    def densities(self) -> list[float]:
        """LLMS' D_i. A chunk that is too new to have one counts as the densest, the best that LLMS could do with it."""
        known = [one.density for one in self.sensitivities if one is not None]
        return [max(known, default=1.0) if one is None else one.density for one in self.sensitivities]

    def size(self, precision: Precision) -> int:
        """Bytes of a chunk other than the first."""
        return self.codec.encoded_size(CHUNK_TOKENS, precision)

    def budget(self, bits: float) -> int:
        """Bytes for all chunks at ``bits`` true bits per value, less those that the first chunk's sinks always take."""
        least = Precision(2, 2)
        sinks = self.codec.encoded_size(CHUNK_TOKENS, least, sinks_at(0)) - self.size(least)
        return int(bits * len(self.slabs) * CHUNK_TOKENS * self.codec.geometry.token_bytes / 16) - sinks


class Setting(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str:
        """What draws a line in a plot."""

    def choose(self, prefix: Prefix) -> list[Precision]: ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """All chunks at the same precision."""

    k: int
    v: int
    family: str = "uniform"

    @property
    def name(self) -> str:
        return f"uniform {self.k}/{self.v}"

    def choose(self, prefix: Prefix) -> list[Precision]:
        return [Precision(self.k, self.v)] * len(prefix.slabs)


def by_tolerance(prefix: Prefix, nbytes: int) -> list[Precision]:
    """Precisions by measured sensitivity: bits where they keep most of the attention output."""
    return allocate(prefix.sensitivities, prefix.size, nbytes)


def by_density(prefix: Prefix, nbytes: int) -> list[Precision]:
    """Precisions by mean attention, as LLMS chooses them (arXiv 2403.11805)."""
    return llms(prefix.densities, prefix.size, nbytes)


@dataclass(frozen=True, slots=True)
class Shared:
    """A budget of ``bits`` true bits per value, which ``allot`` divides among the chunks."""

    family: str
    bits: float
    allot: Callable[[Prefix, int], list[Precision]]

    @property
    def name(self) -> str:
        return f"{self.family} {self.bits}"

    def choose(self, prefix: Prefix) -> list[Precision]:
        return self.allot(prefix, prefix.budget(self.bits))


@dataclass(frozen=True, slots=True)
class ToleranceLike:
    """By sensitivity, with the bytes that another setting takes in the same context: llms meets no budget exactly."""

    other: Setting
    family: str = "tolerance, matched"

    @property
    def name(self) -> str:
        return f"tolerance like {self.other.name}"

    def choose(self, prefix: Prefix) -> list[Precision]:
        return by_tolerance(prefix, sum(map(prefix.size, self.other.choose(prefix))))


def settings(quick: bool) -> list[Setting]:
    uniform: list[Setting] = [Uniform(k, v) for k, v in (UNIFORM_QUICK if quick else UNIFORM)]
    tolerance = [Shared("tolerance", bits, by_tolerance) for bits in (BUDGETS_QUICK if quick else BUDGETS)]
    llms_ = [Shared("llms", bits, by_density) for bits in (LLMS_BUDGETS_QUICK if quick else LLMS_BUDGETS)]
    return [*uniform, *tolerance, *llms_, *map(ToleranceLike, llms_)]

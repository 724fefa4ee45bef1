"""What is known where a call is placed: what each node reports of itself, and what the call is.

Law: pure values. They come from other machines: a number that is no number, a negative one, or too many of anything is
refused (ValueError that names the field).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import field

from llmaas.frozen import frozen
from llmaas.policies.context_marks import ContextMarks
from llmaas.policies.linear_cost import LinearCost

MOST_NAMES = 4096
"""Models, links or movable calls in one report."""
MOST_CHAIN = 1 << 16
"""Chunks of a context: four million tokens."""


def _check(numbers: Mapping[str, float]) -> None:
    for name, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"field '{name}': {number} is not a number from 0 on")


@frozen
class TransferCost:
    """Seconds that bringing bytes takes: ``q + nbytes * byte_s``, the ``q + n/b`` of ServerlessLLM (arXiv 2401.14351).

    >>> TransferCost(0.25, 1e-6)(500_000)
    0.75
    """

    q: float
    byte_s: float

    def __post_init__(self) -> None:
        _check({"q": self.q, "byte_s": self.byte_s})

    @classmethod
    def learnt(cls, cost: LinearCost) -> TransferCost:
        """From a cost of (transfers, bytes), as ``migration.LinkCosts`` keeps it."""
        return cls(cost.a, cost.b)

    def __call__(self, nbytes: float) -> float:
        return self.q + nbytes * self.byte_s


class ModelTier(enum.IntEnum):
    """Where a node has a model's weights, fastest first."""

    LOADED = 0
    """An engine runs with it."""
    MEMORY = 1
    """In RAM: the page cache holds its file, or they are parked."""
    DISK = 2
    AWAY = 3
    """Not here, but it can be fetched."""


@frozen
class ModelHere:
    """A model on a node. ``prefill_rate``: tokens/s, as learnt; 0: not known here. ``ready_s``: if it is being
    loaded, seconds until that is done and the calls that wait for it are computed.
    """

    tier: ModelTier
    prefill_rate: float = 0.0
    ready_s: float = 0.0

    def __post_init__(self) -> None:
        _check({"prefill_rate": self.prefill_rate, "ready_s": self.ready_s})


@frozen
class MovableCall:
    """What runs on a node with one model, and could go on elsewhere. Several calls that only together make room are
    reported as one: all their tokens and bytes.
    """

    name: str
    model: str
    model_bytes: int
    tokens: int
    chunk_bytes: int
    """Of its coded chunks."""
    frees_bytes: int
    """Room for a model, once it is gone."""
    wait_s: float
    """Seconds until a new call has its turn, once it is gone."""
    pause_s: float = 0.0
    """Seconds that its client sees no token while it changes nodes (``policies.migration``)."""

    def __post_init__(self) -> None:
        _check({
            "model_bytes": self.model_bytes, "tokens": self.tokens, "chunk_bytes": self.chunk_bytes,
            "frees_bytes": self.frees_bytes, "wait_s": self.wait_s, "pause_s": self.pause_s,
        })  # fmt: skip


@frozen
class NodeReport:
    """What a node says of itself, at one moment."""

    name: str
    models: Mapping[str, ModelHere]
    """Every model that it has or can fetch, by fingerprint."""
    loads: Mapping[ModelTier, TransferCost]
    """What it has learnt that loading the bytes of a model takes from a tier; where there is none, it cannot."""
    read: TransferCost
    """What bringing coded chunks of its own into cells takes."""
    queue_s: float = 0.0
    """Seconds until a new call has its turn beside what runs now."""
    drain_s: float = 0.0
    """Seconds until nothing that is here now runs or waits: then all ``total_bytes`` can be had."""
    loading_s: float = 0.0
    """Seconds until a further model could begin to be loaded."""
    free_bytes: int = 0
    """Room for a model's weights that can be had at once, by unloading models that nobody uses."""
    total_bytes: int = 0
    compute_rate: float = 0.0
    """Bytes of weights x tokens/s of a prompt: gives a rate for a model that has not run here. 0: not known."""
    contexts: ContextMarks = field(default_factory=ContextMarks)
    links: Mapping[str, TransferCost] = field(default_factory=dict)
    """What sending bytes to other nodes takes, by their names. No entry: it does not reach that node."""
    movable: tuple[MovableCall, ...] = ()
    at: float = 0.0
    """When it was so, on the clock of whoever places: waits have become shorter since."""

    def __post_init__(self) -> None:
        _check({
            "queue_s": self.queue_s, "drain_s": self.drain_s, "loading_s": self.loading_s,
            "free_bytes": self.free_bytes, "total_bytes": self.total_bytes, "compute_rate": self.compute_rate,
        })  # fmt: skip
        for name, entries in (("models", self.models), ("links", self.links), ("movable", self.movable)):
            if len(entries) > MOST_NAMES:
                raise ValueError(f"field '{name}': at most {MOST_NAMES} are allowed, not {len(entries)}")


@frozen
class CallToPlace:
    """A call that some node is to serve."""

    model: str
    model_bytes: int
    new_tokens: int
    """Those that its context does not have yet."""
    tokens: int = 0
    """Those that its context has."""
    chain: tuple[int, ...] = ()
    """``chain_marks`` of its context's full chunks."""
    token_bytes: float = 0.0
    """Bytes of a token in coded chunks."""
    owner: str = ""
    """The node that owns its context: it has the tokens. Empty: the call brings all tokens itself."""

    def __post_init__(self) -> None:
        _check({
            "model_bytes": self.model_bytes, "new_tokens": self.new_tokens, "tokens": self.tokens,
            "token_bytes": self.token_bytes,
        })  # fmt: skip
        if len(self.chain) > MOST_CHAIN:
            raise ValueError(f"field 'chain': at most {MOST_CHAIN} chunks are allowed, not {len(self.chain)}")

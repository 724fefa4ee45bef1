"""Whether answers get worse when a conversation is swapped out and in many times.

Law: chunks are treated as the service treats them. A full chunk is coded once, from what the model computed over chunks
that were coded before; the last, partial chunk stays exact until it is full. After each turn all cells are dropped and
loaded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.quality.contexts import Probe
from bench.quality.lab import Lab, kld
from llmaas.kv_arrays import KvSlab
from llmaas.records import CHUNK_TOKENS, LOSSLESS, Precision


@dataclass(frozen=True, slots=True)
class Drift:
    """Mean KLD (nats) against exact KV, of the same tokens after ``rounds`` swaps and after one.

    ``intact``: after all rounds the chunks of the first one have the very bytes that they had after it.
    """

    many: float
    once: float
    intact: bool


def drift(lab: Lab, tokens: Sequence[int], precision: Precision, *, start: int, rounds: int, scored: int) -> Drift:
    """Swap a conversation ``rounds`` times, and compare what the model says of the last ``scored`` of ``tokens``.

    The conversation has ``start`` tokens when it is first swapped, and grows to all but the scored ones by equal steps.
    """
    stop = len(tokens) - scored
    probe = Probe("drift", stop, tuple(tokens[stop:]))
    conversation = _Conversation(lab, LOSSLESS)
    conversation.go_on(tokens[:stop])
    exact = lab.ask(probe)
    conversation = _Conversation(lab, precision)
    conversation.go_on(tokens[:stop])
    once = kld(exact, lab.ask(probe))
    cuts = [round(cut) for cut in np.linspace(start, stop, rounds)]
    conversation = _Conversation(lab, precision)
    conversation.go_on(tokens[:start])
    first = lab.export(0)[: start // CHUNK_TOKENS]
    for begin, end in pairwise(cuts):
        conversation.go_on(tokens[begin:end])
    many = kld(exact, lab.ask(probe))
    return Drift(float(many.mean()), float(once.mean()), all(map(_equal, first, lab.export(0))))


class _Conversation:
    """Sequence 0 of the lab's engine, and its full chunks, coded at ``precision``."""

    def __init__(self, lab: Lab, precision: Precision) -> None:
        self._lab = lab
        self._precision = precision
        self._payloads: list[bytearray] = []
        lab.engine.drop(0, 0)

    def go_on(self, tokens: Sequence[int]) -> None:
        """Feed a turn; then swap everything out and in."""
        self._lab.engine.feed(0, tokens)
        rest: list[bytearray] = []
        for slab in self._lab.export(len(self._payloads) * CHUNK_TOKENS):
            full = slab.n_tokens == CHUNK_TOKENS
            start = len(self._payloads) * CHUNK_TOKENS
            payload = self._lab.encode(slab, self._precision if full else LOSSLESS, start)
            (self._payloads if full else rest).append(payload)
        sizes = [CHUNK_TOKENS] * len(self._payloads)
        if rest:
            sizes.append(self._lab.engine.length(0) % CHUNK_TOKENS)
        self._lab.bring_back([*self._payloads, *rest], sizes)


def _equal(one: KvSlab, other: KvSlab) -> bool:
    return np.array_equal(one.k, other.k) and np.array_equal(one.v, other.v)

"""Samplers of the fake engine: the next token is a function of a sequence's running sum and the sampler's state.

Law: a greedy draw is the highest of the logits that ``logits`` gives for the same sum. A seed fixes an answer.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from llmaas.calls import Sampling
from llmaas.engine.fake.mixing import mix, mix_many
from llmaas.engine.fake.text import IM_END, N_VOCAB
from llmaas.engine.rules import check_sampler
from llmaas.errors import BadRequest
from llmaas.records import F32

_ANSWERS = b"etaoin shrdlu cmfwyp"
"""The bytes that answers consist of; each is a whole UTF-8 character."""


class FakeSamplers:
    """Samplers by their numbers. ``end_rate``: the chance that a drawn token ends the answer."""

    def __init__(self, end_rate: float) -> None:
        self._end_rate = end_rate
        self._samplers: dict[int, tuple[Sampling, random.Random, deque[int]]] = {}

    def __contains__(self, sampler: object) -> bool:
        return sampler in self._samplers

    def __len__(self) -> int:
        return len(self._samplers)

    def check(self, sampling: Sampling) -> None:
        """Raise BadRequest for a sampling that asks for a grammar."""
        if sampling.constrained:
            raise BadRequest("this engine has no grammars")

    def set(self, sampler: int, sampling: Sampling | None, past: Sequence[int]) -> None:
        """See ``Engine.set_sampler``."""
        check_sampler(sampler)
        self._samplers.pop(sampler, None)
        if sampling is not None:
            self.check(sampling)
            seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
            self._samplers[sampler] = sampling, random.Random(seed), deque(past, sampling.penalty_last_n)

    def draw(self, sampler: int, total: int) -> int:
        """The next token of a sequence whose running sum is ``total``."""
        sampling, rng, past = self._samplers[sampler]
        if sampling.temperature > 0:
            total = mix(total, rng.getrandbits(64))
        token = self._greedy(total)
        if sampling.penalises and token != IM_END:
            logits = self.logits(total)
            for known, count in Counter(past).items():
                logits[known] /= sampling.repeat_penalty  # all of them are positive
                logits[known] -= sampling.presence_penalty + count * sampling.frequency_penalty
            token = max(_ANSWERS, key=logits.__getitem__)
        past.append(token)
        return token

    def logits(self, total: int) -> F32:
        """All bits of the sum spread over the vocabulary (n_vocab), with the greedy token on top."""
        noise = mix_many(np.array([total], np.uint64), N_VOCAB)[0]
        logits: F32 = (noise / 2.0**64).astype(np.float32)
        logits[self._greedy(total)] += 2.0
        return logits

    def _greedy(self, total: int) -> int:
        if mix(total, 1) / 2.0**64 < self._end_rate:
            return IM_END
        return _ANSWERS[mix(total, 2) % len(_ANSWERS)]

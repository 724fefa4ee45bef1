"""Samplers of the fake engine: the next token is a function of a sequence's running sum and the sampler's state.

Law: a greedy draw is the highest of the logits that ``logits`` gives for the same sum. A seed fixes an answer.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from llmaas.calls import Sampling
from llmaas.engine.base import Prepared, Undrawn
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.draws import Draw, Draws
from llmaas.engine.constraint.port import Constraint, brought_to
from llmaas.engine.constraint.vocabulary import Vocabulary
from llmaas.engine.fake.text import IM_END, N_VOCAB, is_end, piece
from llmaas.engine.rules import check_sampler
from llmaas.errors import LlmaasError
from llmaas.kv_arrays import F32
from llmaas.mixing import mix, mix_many

_ANSWERS = b"etaoin shrdlu cmfwyp"
"""The bytes that answers consist of; each is a whole UTF-8 character."""
_DISTINCT = sorted(set(_ANSWERS))


class _Past:
    """The last ``n`` tokens, and how often each of them is among them; counting anew would take longer than a step.
    ``n_drawn``: those that were appended."""

    def __init__(self, tokens: Sequence[int], n: int) -> None:
        self._tokens = deque(tokens, n)
        self.counts = Counter(self._tokens)
        self.n_drawn = 0

    def append(self, token: int) -> None:
        self.n_drawn += 1
        if len(self._tokens) == self._tokens.maxlen:
            if not self._tokens:
                return
            self.counts[self._tokens[0]] -= 1
        self._tokens.append(token)
        self.counts[token] += 1


class _Biases:
    """What a sampler adds to the logits of tokens that there are."""

    def __init__(self, sampling: Sampling) -> None:
        known = [(token, bias) for token, bias in sampling.logit_bias if token < N_VOCAB]
        self._tokens = np.array([token for token, _ in known], np.int64)
        self._added = np.array([bias for _, bias in known], np.float32)

    def add_to(self, logits: F32) -> None:
        np.add.at(logits, self._tokens, self._added)


class FakeSamplers:
    """Samplers by their numbers. ``end_rate``: the chance that a drawn token ends the answer."""

    def __init__(self, end_rate: float) -> None:
        self._end_rate = end_rate
        self._samplers: dict[int, tuple[Sampling, int, _Past, _Biases]] = {}
        self._constraints = Constraints(Vocabulary(N_VOCAB, piece, is_end))
        self._constrained: dict[int, Constraint] = {}
        self._failures: dict[int, LlmaasError] = {}
        self.draws = Draws()

    def __contains__(self, sampler: object) -> bool:
        return sampler in self._samplers

    def __len__(self) -> int:
        return len(self._samplers)

    def check(self, sampling: Sampling) -> Prepared | None:
        """See ``Engine.check_sampling``."""
        return self._constraints.check(sampling)

    def failure(self, sampler: int) -> LlmaasError | None:
        """See ``Engine.sampler_failure``."""
        return self._failures.get(sampler)

    def set(self, sampler: int, sampling: Sampling | None, past: Sequence[int], answer: Sequence[int]) -> None:
        """See ``Engine.set_sampler``."""
        check_sampler(sampler)
        for known in (self._samplers, self._constrained, self._failures):
            known.pop(sampler, None)
        self.draws.forget(sampler)
        if sampling is not None:
            if (constraint := self._constraints.begin(sampling)) is not None:
                self._constrained[sampler] = constraint
                if (failure := brought_to(constraint, answer)) is not None:
                    self._failures[sampler] = failure
            seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
            past_tokens = _Past(past, sampling.penalty_last_n)
            for token in answer:
                past_tokens.append(token)
            self._samplers[sampler] = sampling, seed, past_tokens, _Biases(sampling)

    def draw(self, sampler: int, total: int) -> int | Undrawn:
        """The next token of a sequence whose running sum is ``total``."""
        if sampler not in self._constrained:
            token = self._free(sampler, total)
        elif sampler in self._failures:
            token = IM_END
        else:
            constraint = self._constrained[sampler]
            try:
                found = self.draws.draw(sampler, constraint, lambda: self._allowed(sampler, constraint, total))
            except LlmaasError as error:
                self._failures[sampler] = error
                found = IM_END
            if found is None:
                return Undrawn.LATER
            token = found
        self._samplers[sampler][2].append(token)
        return token

    def _free(self, sampler: int, total: int) -> int:
        """The token that the sampler would draw without a constraint."""
        sampling, seed, past, biases = self._samplers[sampler]
        if not sampling.greedy:
            total = mix(total, mix(seed, past.n_drawn))
        token = self._greedy(total)
        if sampling.logit_bias or sampling.penalises:
            logits = self.logits(total)
            biases.add_to(logits)
        if sampling.logit_bias:
            token = int(logits.argmax())
        if sampling.penalises and token != IM_END:
            for known in _DISTINCT:
                if count := past.counts[known]:
                    logits[known] /= sampling.repeat_penalty  # all of them are positive
                    logits[known] -= sampling.presence_penalty + count * sampling.frequency_penalty
            token = max(_ANSWERS, key=logits.__getitem__)
        return token

    def _allowed(self, sampler: int, constraint: Constraint, total: int) -> Draw:
        """The token that the sampler draws if the constraint accepts it, or else one of those that it allows."""
        token = self._free(sampler, total)
        yield
        if not constraint.accept(token):
            yield
            tokens = np.flatnonzero((yield from constraint.allowed()))
            token = int(tokens[mix(total, 3) % len(tokens)])
            constraint.accept(token)
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

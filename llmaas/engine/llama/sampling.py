"""Samplers: for each answer a sampler chain of llama.cpp and, if one is asked for, a constraint.

Law: a chain belongs to exactly one sampler number and is freed exactly once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmaas.calls import Sampling
from llmaas.engine.base import Undrawn
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.draws import Draw, Draws
from llmaas.engine.constraint.port import Constraint, brought_to
from llmaas.engine.llama.decode_run import LIKELIEST
from llmaas.engine.llama.lib import C
from llmaas.engine.llama.seeded_draw import CANDIDATE, SeededDraw
from llmaas.engine.rules import check_sampler
from llmaas.errors import EngineFailed, LlmaasError
from llmaas.kv_arrays import F32

_REDRAWS = 3
"""Draws before all tokens are asked about, where that is slow."""


class Samplers:
    """The samplers in use, by the numbers that the engine's caller chose."""

    def __init__(self, constraints: Constraints, n_vocab: int, end: int) -> None:
        self.constraints, self._n_vocab, self._end = constraints, n_vocab, end
        self._chains: dict[int, tuple[Any, Constraint | None, SeededDraw | None]] = {}
        self._failures: dict[int, LlmaasError] = {}
        self.draws = Draws()
        self._candidates = np.empty(n_vocab, CANDIDATE)
        self._ids = np.arange(n_vocab, dtype=np.int32)

    def set(
        self, sampler: int, sampling: Sampling | None, past: Sequence[int] = (), answer: Sequence[int] = ()
    ) -> None:
        """See ``Engine.set_sampler``."""
        check_sampler(sampler)
        chain, _, _ = self._chains.pop(sampler, (None, None, None))
        self._failures.pop(sampler, None)
        self.draws.forget(sampler)
        if chain is not None:
            C.llama_sampler_free(chain)
        if sampling is None:
            return
        constraint = self.constraints.begin(sampling)
        chain, draw = _chain(sampling, self._n_vocab, past)
        for token in answer:
            C.llama_sampler_accept(chain, token)
        self._chains[sampler] = chain, constraint, draw
        if constraint is not None and (failure := brought_to(constraint, answer)) is not None:
            self._failures[sampler] = failure

    def __contains__(self, sampler: object) -> bool:
        return sampler in self._chains

    def failure(self, sampler: int) -> LlmaasError | None:
        """See ``Engine.sampler_failure``."""
        return self._failures.get(sampler)

    def chain(self, sampler: int) -> Any:
        """The sampler's chain, a ``llama_sampler *``, or LIKELIEST; None if neither can draw, as it is constrained."""
        chain, constraint, _ = self._chains[sampler]
        if constraint is not None:
            return None
        return LIKELIEST if C.llama_sampler_chain_n(chain) == 1 else chain  # only the greedy link is ever alone

    def draw(self, sampler: int, context: Any, index: int) -> int | Undrawn:
        """Draw a token from the logits after the batch's token ``index``, or go on with a draw that was put off."""
        chain, constraint, _ = self._chains[sampler]
        if constraint is None:
            return int(C.llama_sampler_sample(chain, context, index))
        if sampler in self._failures:
            return self._end
        row = np.ctypeslib.as_array(C.llama_get_logits_ith(context, index), (self._n_vocab,))
        try:
            token = self.draws.draw(sampler, constraint, lambda: self._draw_allowed(chain, row, constraint))
        except LlmaasError as error:
            self._failures[sampler] = error
            return self._end
        if token is None:
            return Undrawn.LATER
        C.llama_sampler_accept(chain, token)
        return token

    def _draw_allowed(self, chain: Any, row: F32, constraint: Constraint) -> Draw:
        """A token that the constraint has accepted.

        The chain draws from all tokens first, and mostly the constraint accepts that. Where it does not, tokens are
        left out and the chain draws again: the chances of the others are as if those had been left out before.
        """
        row = row.copy()  # the next step overwrites it
        token = self._select(chain, row)
        yield
        if constraint.accept(token):
            return token
        for _ in range(0 if constraint.masks_are_cheap else _REDRAWS):
            row[token] = -np.inf
            token = self._select(chain, row)
            yield
            if constraint.accept(token):
                return token
        yield
        row[~(yield from constraint.allowed())] = -np.inf
        token = self._select(chain, row)
        if not constraint.accept(token):  # an infinite logit, or a bug
            raise EngineFailed(f"token {token} was drawn, though it is not allowed")
        return token

    def _select(self, chain: Any, row: F32) -> int:
        """The token that the chain selects from a row of logits (n_vocab)."""
        found = self._candidates
        found["id"], found["logit"], found["p"] = self._ids, row, 0.0
        array = C.llama_token_data_array(found.ctypes.data_as(C.llama_token_data_p), self._n_vocab, -1, False)
        C.llama_sampler_apply(chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def close(self) -> None:
        """Free all samplers."""
        for sampler in list(self._chains):
            self.set(sampler, None)


def _chain(sampling: Sampling, n_vocab: int, past: Sequence[int]) -> tuple[Any, SeededDraw | None]:
    """A new ``llama_sampler *``, in llama.cpp's order: biases, penalties, cutting the tail, temperature, the draw; and
    what that draws with."""
    params = C.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = C.llama_sampler_chain_init(params)
    links, draw = [], None
    if sampling.logit_bias:
        biases = (C.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias)
        links.append(C.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))  # it copies them
    # The tail is cut at temperature 1; what is left is then drawn from at the temperature asked for.
    if sampling.penalises:
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        links.append(C.llama_sampler_init_penalties(n_vocab, sampling.penalty_last_n, *penalties))
        for token in past[-sampling.penalty_last_n :]:
            C.llama_sampler_accept(links[-1], token)
    if sampling.greedy:
        links.append(C.llama_sampler_init_greedy())
    else:
        draw = SeededDraw(sampling.seed)
        links += [
            C.llama_sampler_init_top_k(sampling.top_k),
            C.llama_sampler_init_top_p(sampling.top_p, 1),
            C.llama_sampler_init_min_p(sampling.min_p, 1),
            C.llama_sampler_init_temp(sampling.temperature),
            draw.link,
        ]
    for link in links:
        C.llama_sampler_chain_add(chain, link)
    return chain, draw

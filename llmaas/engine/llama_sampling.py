"""F6. Sampler chains of llama.cpp, one per answer.

Law: a chain belongs to exactly one sampler number and is freed exactly once.
"""

from __future__ import annotations

from typing import Any

from llmaas.engine.llama_lib import C
from llmaas.records import Sampling

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp draws a seed of its own for this one (LLAMA_DEFAULT_SEED)."""


class Samplers:
    """The chains in use, by the numbers that the engine's user gave them."""

    def __init__(self) -> None:
        self._chains: dict[int, Any] = {}

    def set(self, sampler: int, sampling: Sampling | None) -> None:
        """A fresh chain under the number ``sampler``; None frees it."""
        if sampler < 0:
            raise ValueError(f"samplers are numbered from 0, not {sampler}")
        old = self._chains.pop(sampler, None)
        if old is not None:
            C.llama_sampler_free(old)
        if sampling is not None:
            self._chains[sampler] = _chain(sampling)

    def __contains__(self, sampler: int) -> bool:
        return sampler in self._chains

    def draw(self, sampler: int, context: Any, index: int) -> int:
        """The token drawn from the logits of the batch's token ``index``."""
        return int(C.llama_sampler_sample(self._chains[sampler], context, index))

    def close(self) -> None:
        for sampler in list(self._chains):
            self.set(sampler, None)


def _chain(sampling: Sampling) -> Any:
    params = C.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = C.llama_sampler_chain_init(params)
    if sampling.temperature == 0.0:
        links = [C.llama_sampler_init_greedy()]
    else:
        # llama.cpp's own default order: cut the tail at temperature 1, then heat what is left.
        links = [
            C.llama_sampler_init_top_k(sampling.top_k),
            C.llama_sampler_init_top_p(sampling.top_p, 1),
            C.llama_sampler_init_min_p(sampling.min_p, 1),
            C.llama_sampler_init_temp(sampling.temperature),
            C.llama_sampler_init_dist(_seed(sampling.seed)),
        ]
    for link in links:
        C.llama_sampler_chain_add(chain, link)
    return chain


def _seed(seed: int | None) -> int:
    if seed is None:
        return _RANDOM_SEED
    return seed % _RANDOM_SEED  # 32 bits, and never by accident the one that means "random"

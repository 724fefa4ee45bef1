"""Calls in bursts: a load that comes all at once, and then for a while not at all.

Law: the seed decides all. Gaps are of a gamma distribution with a coefficient of variation of 8, as in the experiments
of ServerlessLLM (arXiv 2401.14351, section 7.1, after AlpaServe, OSDI 2023); those of the Azure code trace of 2023 have
13. Who calls is drawn by the ``markov`` pattern of ``switching``. Prompts and answers are log-normal: most are short.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from llmaas.traces.call import TraceCall
from llmaas.traces.growth import Conversations
from llmaas.traces.switching import called

GAP_S, VARIATION = 20.0, 8.0
_PROMPT, _ANSWER = (300, 1.0), (100, 0.8)
"""Median tokens, and the spread of their logarithm."""


def make(contexts: int, *, limit: int = 4096, seed: int = 1, hours: float = 24.0) -> Iterator[TraceCall]:
    """A trace of so many contexts for a model of ``limit`` tokens."""
    rng = random.Random(f"bursts {contexts} {limit} {seed}")
    order, conversations = called("markov", contexts, rng), Conversations(limit, rng)
    shape, t = VARIATION**-2, 0.0
    while (t := t + rng.gammavariate(shape, GAP_S / shape)) < hours * 3600:
        i = next(order)
        prompt, answer = (max(1, int(rng.lognormvariate(math.log(n), spread))) for n, spread in (_PROMPT, _ANSWER))
        yield conversations.add(t, f"app{i}", f"c{i}", min(prompt, limit // 2), min(answer, limit // 4))

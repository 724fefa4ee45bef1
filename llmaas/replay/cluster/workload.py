"""What a cluster is asked: the calls of a trace, each with a model, and the contexts that they go to.

Law: when calls come, how long they are and which context they go to is the trace's. Which model an app uses is made up,
because no trace says it: by a hash of the app's or context's name, so that the k-th model has a share of 1 / k.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from llmaas.frozen import frozen
from llmaas.mixing import mix
from llmaas.policies.context_marks import kept_marks
from llmaas.records import CHUNK_TOKENS
from llmaas.replay.cluster.profiles import ClusterModel
from llmaas.traces.call import TraceCall

_MOST = (1 << 64) - 1
"""The greatest ``_number``."""


@frozen
class ClusterCall:
    """``prefix_tokens``: those that contexts with the same ``prefix`` begin with."""

    t: float
    context: str
    model: ClusterModel
    prompt: int
    generate: int
    prefix: str = ""
    prefix_tokens: int = 0


def with_models(trace: Iterable[TraceCall], models: Sequence[ClusterModel], *, speed: float = 1.0) -> list[ClusterCall]:
    """The trace's calls, ``speed`` times as often. All calls of a context are of one model, and so are all contexts
    that share a prefix: their tokens are equal, and so are their keys only with the same model.
    """
    shares = list(itertools.accumulate(1 / k for k in range(1, len(models) + 1)))
    owner: dict[str, ClusterModel] = {}
    calls = []
    for call in trace:
        name = f"{call.app}/{call.context}"
        if name not in owner:
            drawn = _number(call.prefix or name) / _MOST * shares[-1]
            owner[name] = models[min(bisect_left(shares, drawn), len(models) - 1)]
        model, generate = owner[name], max(1, call.generate)
        calls.append(ClusterCall(call.t / speed, name, model, call.prompt, generate, call.prefix, call.prefix_tokens))
    return calls


@dataclass(slots=True, eq=False)
class ClusterContext:
    """A context in a replay. ``chain``: the mark of each full chunk; ``owner``: the node that has it."""

    name: str
    prefix: str = ""
    prefix_tokens: int = 0
    tokens: int = 0
    chain: tuple[int, ...] = ()
    owner: str = ""
    kept: frozenset[int] = field(default_factory=frozenset)

    def grow(self, tokens: int) -> None:
        self.tokens = tokens
        n = tokens // CHUNK_TOKENS
        if n > len(self.chain):
            self.chain = (*self.chain, *self._marks(len(self.chain), n))
        self.kept = frozenset(kept_marks(self.chain))

    def prefix_chain(self) -> tuple[int, ...]:
        """The marks of what it shares with others, before it has any."""
        return tuple(self._marks(0, self.prefix_tokens // CHUNK_TOKENS))

    def _marks(self, start: int, stop: int) -> Iterable[int]:
        shared, own, common = self.prefix_tokens // CHUNK_TOKENS, _number(self.name), _number(self.prefix)
        for i in range(start, stop):
            yield mix(0, (common if i < shared else own) + i - 1)


def _number(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")

"""Whole states: where a context whose sequence cannot be cut may go on from.

Law: plain bookkeeping, no decisions. A state is a chunk like any other, named by the key of the chunk that ends with
its last token: that key stands for every token up to there. So a context has a state wherever a chunk of it ends and
has a copy; most of its chunks have none.

When a context grows, its last chunk gets another key, and the state at the end of the call before would be swept. The
latest of those are kept as *earlier states*, so that a truncation finds one near. Each counts as a context that is
cooled (``DiskQuota``): it is never written, what there is of it on DISK is the first to go, and goes at once when a
later state of the context has come there. What it takes in the POOL may be evicted like all that is safe elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.context import Context, StateAt
from llmaas.records import ChunkKey, Tier

EARLIER = 4
"""Earlier states of each context at most. Each may take as much memory as the last one."""


def best_state(ledger: Ledger, context: Context, most: int) -> StateAt | None:
    """The state with a copy that holds the most tokens, ``most`` at most and more than CELLS do."""
    for state in _longest_first(context):
        if state.n_tokens <= context.cells:
            return None
        chunk = ledger.chunk(state.key)
        if state.n_tokens <= most and (chunk.tier is not Tier.NONE or chunk.moving):
            return state
    return None


def _longest_first(context: Context) -> Iterator[StateAt]:
    earlier = list(context.earlier)
    for index in range(len(context.keys) - 1, -1, -1):
        state = StateAt(context.end_of(index), context.keys[index])
        while earlier and earlier[-1].n_tokens > state.n_tokens:
            yield earlier.pop()
        yield state
    yield from reversed(earlier)


class EarlierStates:
    """Keeps the books of what contexts keep beside their last states."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def before_change(self, context: Context, first: int, keys: Sequence[ChunkKey], n_kv: int) -> None:
        """The context's chunks from index ``first`` on will be ``keys``: keep the state at its present end, if another
        chunk comes in its place."""
        last = len(context.keys) - 1
        if last < first or n_kv <= context.n_kv or not context.rests:
            return
        key, chunk = context.keys[last], self._ledger.chunk(context.keys[last])
        if keys[last - first : last - first + 1] != (key,) and (chunk.tier is not Tier.NONE or chunk.moving):
            self._ledger.ref(key, context.app)
            self._ledger.cool(key)
            context.earlier.append(StateAt(context.n_kv, key))

    def after_change(self, context: Context) -> list[ChunkKey]:
        """The context has its new chunks: give up what lies at its end or beyond it, and the oldest of too many.
        Returns the keys, which no longer count."""
        inside = [state for state in context.earlier if state.n_tokens < context.n_kv][-EARLIER:]
        gone = [state.key for state in context.earlier if state not in inside]
        for key in gone:
            self._ledger.warm(key)
            self._ledger.unref(key)
        context.earlier[:] = inside
        context.rests = not context.wanted
        return gone

    def closed(self, context: Context) -> list[ChunkKey]:
        """The context is no more."""
        context.n_kv = 0
        return self.after_change(context)

"""Whether a chunk is worth the flash that it would take.

Law: a chunk is written if bringing it back is expected to save more time than its bytes cost, by what was learned of
this machine and at the price of the wear policy. All chunks of one model are worth about the same. So what tells them
apart, when a budget is short and the price rises, is how many contexts share a chunk, how often its context was called,
and how far from the beginning it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.cost_model import SwitchCosts
from llmaas.policies.wear import WearPolicy
from llmaas.records import CHUNK_TOKENS, ChunkKey, ContextId

ChunkUser = tuple[ContextId, int]
"""The context that used a chunk last, and the chunk's index there."""


class ChunkWorth:
    """``users``: of all chunks in the POOL. ``calls``: how often a context was called. ``always_read``: whatever has a
    copy on DISK is read, so each is worth its bytes while the wear policy has no shortage of them. ``states``: a chunk
    is the state of all tokens up to its end."""

    def __init__(
        self,
        ledger: Ledger,
        costs: SwitchCosts,
        wear: WearPolicy,
        users: Mapping[ChunkKey, ChunkUser],
        calls: Callable[[ContextId], int],
        *,
        always_read: bool,
        states: bool = False,
    ) -> None:
        self._ledger, self._costs, self._wear, self._users, self._calls = ledger, costs, wear, users, calls
        self._always_read, self._states = always_read, states

    def is_worth(self, key: ChunkKey) -> bool:
        """Whether the chunk, which is in the POOL, should be written."""
        if self._always_read and self._wear.ample:
            return True
        chunk = self._ledger.chunk(key)
        context, index = self._users[key]
        start = 0 if self._states else index * CHUNK_TOKENS
        saves = self._costs.compute(start, (index + 1) * CHUNK_TOKENS) - self._costs.bring(chunk.pool_bytes)
        returns = max(1, self._calls(context))
        # What happened n times happens again with a probability of n / (n + 1) or so (rule of succession).
        return saves * max(1, chunk.refs) * returns / (returns + 1) >= self._wear.price() * chunk.pool_bytes

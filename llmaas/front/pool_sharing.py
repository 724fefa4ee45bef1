"""One budget of POOL bytes over the models that are in memory: who is told what.

Law: ``policies.pool_shares`` decides. What a model is to give back is told before others are told of more; all are
told, or none, so that the shares always fit. Small changes are not told: each makes a planner look at its POOL.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmaas.front.process import ModelProcess, ProcessState
from llmaas.policies.pool_shares import PoolClaim, pool_shares

_LEAST_CHANGE = 1 / 16
"""Of what the model may have; a model that has just been loaded is told in any case."""


class PoolSharing:
    """Shares ``total`` bytes out. ``most``: for each model by its name what it may have at best, as its own settings
    say."""

    def __init__(self, total: int, most: Mapping[str, int]) -> None:
        self._total, self._most = total, most

    def settle(self, processes: Mapping[str, ModelProcess], now: float) -> None:
        """Tell the models their shares, by what they hold and how they are used at ``now``. A model that leaves has its
        share until it is gone."""
        there = {name: each for name, each in processes.items() if each.in_memory and self._most.get(name, 0)}
        leaving = {name: each for name, each in there.items() if each.state is ProcessState.LEAVING}
        claims = [self._claim(name, each, now) for name, each in there.items() if name not in leaving]
        free = self._total - sum(each.pool_used for each in leaving.values())
        shares = pool_shares(max(0, free), claims)
        ready = [name for name in shares if there[name].state is ProcessState.READY]
        before = {name: there[name].pool_share for name in ready}
        if not any(self._differs(name, before[name], shares[name]) for name in ready):
            return
        for name in sorted(ready, key=lambda name: shares[name] - (before[name] or 0)):
            if shares[name] != before[name]:
                there[name].give_pool(shares[name])

    def _differs(self, name: str, before: int | None, now: int) -> bool:
        return before is None or abs(now - before) >= self._most[name] * _LEAST_CHANGE

    def _claim(self, name: str, process: ModelProcess, now: float) -> PoolClaim:
        uses = process.uses
        idle_s = now - uses.last
        return PoolClaim(name, self._most[name], process.pool_used, process.pool_share, idle_s, uses.between_s)

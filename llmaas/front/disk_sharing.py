"""One quota of bytes on disk over the stores of all models, those that are away too: who is told what.

Law: ``policies.disk_shares`` decides. What a model is to give back is told before others are told of more. Small
changes are not told: each makes a planner look at its store.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmaas.front.process import ModelProcess, ProcessState
from llmaas.policies.disk_shares import DiskClaim, disk_shares

_LEAST_CHANGE = 1 / 16
"""Of the quota; a model that has just been loaded is told in any case."""


class DiskSharing:
    """Shares ``total`` bytes out. ``most``: for each model by its name what it may have at best, as its own settings
    say; one without a store has none."""

    def __init__(self, total: int, most: Mapping[str, int]) -> None:
        self._total, self._most = total, {name: n for name, n in most.items() if n}

    def settle(self, processes: Mapping[str, ModelProcess], now: float) -> None:
        """Tell the models in memory their shares, by what all stores hold. One that leaves counts as away."""
        claims = [self._claim(name, processes[name]) for name in self._most]
        shares = disk_shares(self._total, claims)
        ready = [name for name in shares if processes[name].state is ProcessState.READY]
        before = {name: processes[name].disk_share for name in ready}
        if not any(self._differs(before[name], shares[name]) for name in ready):
            return
        for name in sorted(ready, key=lambda name: shares[name] - (before[name] or 0)):
            if shares[name] != before[name]:
                processes[name].give_disk(shares[name])

    def _differs(self, before: int | None, now: int) -> bool:
        return before is None or abs(now - before) >= max(1, self._total * _LEAST_CHANGE)

    def _claim(self, name: str, process: ModelProcess) -> DiskClaim:
        there = process.state in (ProcessState.STARTING, ProcessState.READY)
        return DiskClaim(name, self._most[name], process.disk_used, process.disk_share, there)

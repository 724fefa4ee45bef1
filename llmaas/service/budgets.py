"""The budgets of POOL and DISK while the service runs: what was configured, what holds now, and why.

Law: it decides nothing: ``policies.pool_budget`` says what a reading means for the POOL's budget, the planner which
chunks leave. Everything here runs on the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from llmaas.clock import Clock
from llmaas.metrics import Registry
from llmaas.planner.events import BudgetChanged
from llmaas.planner.planner import Planner
from llmaas.policies.bit_price import BitCurve
from llmaas.policies.pool_budget import MemoryReading, PoolBudget
from llmaas.records import NO_QUOTA

log = logging.getLogger(__name__)


class Budgets:
    """``trim_memory`` is called after the POOL has shrunk: it returns freed memory to the system."""

    def __init__(
        self,
        planner: Planner,
        dispatch: Callable[[BudgetChanged], None],
        trim_memory: Callable[[], None],
        clock: Clock,
        metrics: Registry,
    ) -> None:
        self._planner, self._dispatch, self._trim_memory, self._clock = planner, dispatch, trim_memory, clock
        self._policy = PoolBudget(planner.pool_budget)
        self._metrics = metrics
        self._last_reading: MemoryReading | None = None

    def on_reading(self, reading: MemoryReading) -> None:
        """Take a reading of the machine's memory."""
        self._last_reading = reading
        before = self._policy.nbytes
        now = self._policy.on_reading(reading, self._planner.pool_used, self._clock.now())
        if now != before:
            log.log(logging.INFO if now < before else logging.DEBUG, "POOL: %d -> %d, by %s", before, now, reading)
            self._apply(BudgetChanged(pool_bytes=now))

    def set(self, pool_bytes: int | None, disk_bytes: int | None) -> None:
        """Set budgets, in bytes, as an operator asks. None leaves a budget as it is."""
        if pool_bytes is not None:
            self._policy.configure(pool_bytes)
        if pool_bytes is not None or disk_bytes is not None:
            log.info("budgets set: POOL %s, DISK %s", pool_bytes, disk_bytes)
            self._apply(BudgetChanged(pool_bytes, disk_bytes))

    def entitle(self, pool_bytes: int) -> None:
        """The POOL's share of what several models have together is another from now on."""
        before, now = self._policy.nbytes, self._policy.entitle(pool_bytes)
        if now != before:
            log.debug("POOL: %d -> %d, its share of several models'", before, now)
            self._apply(BudgetChanged(pool_bytes=now))

    def entitle_disk(self, disk_bytes: int) -> None:
        """The quota is another share of what the stores of several models have together from now on."""
        if disk_bytes != self._planner.disk_quota:
            log.debug("DISK: %d -> %d, its share of several models'", self._planner.disk_quota, disk_bytes)
            self._apply(BudgetChanged(disk_bytes=disk_bytes))

    def entitle_bits(self, bits: float) -> None:
        """Chunks are coded with so many bits per value in the mean from now on, the model's part of a common budget."""
        self._dispatch(BudgetChanged(bits=bits))

    @property
    def bit_curve(self) -> BitCurve | None:
        """What more bytes would do for the chunks; None if they are not coded by that."""
        return self._planner.bit_curve

    @property
    def disk_used(self) -> int:
        """Bytes of chunks on DISK."""
        return self._planner.disk_used

    @property
    def pool_used(self) -> int:
        """Bytes in the POOL."""
        return self._planner.pool_used

    @property
    def is_short(self) -> bool:
        """Whether the POOL has had to give memory back."""
        return self._policy.nbytes < self._policy.configured

    def _apply(self, event: BudgetChanged) -> None:
        budget, used, start = self._planner.pool_budget, self._planner.pool_used, self._clock.now()
        self._dispatch(event)
        if self._planner.pool_budget < budget:
            self._metrics.histogram("pool_shrink_ms").observe((self._clock.now() - start) * 1e3)
            self._metrics.counter("pool_shrunk_bytes").add(used - self._planner.pool_used)
            self._trim_memory()

    def snapshot(self) -> dict[str, dict[str, object]]:
        """The budgets and why they are what they are, as plain values."""
        planner, policy = self._planner, self._policy
        quota = planner.disk_quota
        pool = {
            "budget": planner.pool_budget,
            "configured": policy.configured,
            "used": planner.pool_used,
            "why": policy.why,
        }
        disk: dict[str, object] = {"chunks": planner.disk_used, "quota": "none" if quota >= NO_QUOTA else quota}
        return {"pool_bytes": pool, "disk_bytes": disk, "memory": self._memory()}

    def _memory(self) -> dict[str, object]:
        """The last reading, if the machine is watched."""
        reading = self._last_reading
        if reading is None:
            return {"watched": False}
        fields = {"stalled": reading.stalled, "limit_bytes": reading.limit, "free_bytes": reading.free}
        return {"watched": True, **{name: value for name, value in fields.items() if value is not None}}

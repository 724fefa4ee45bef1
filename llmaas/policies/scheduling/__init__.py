"""Which call is served next. To add a policy, write a module here and enter it in the table."""

from __future__ import annotations

from collections.abc import Callable

from llmaas.policies.scheduling.base import SchedulingPolicy
from llmaas.policies.scheduling.fair import Fair
from llmaas.policies.scheduling.fifo import Fifo

__all__ = ["DEFAULT_SCHEDULING", "SCHEDULING", "Fair", "Fifo", "SchedulingPolicy"]

SCHEDULING: dict[str, Callable[[int, float], SchedulingPolicy]] = {"fair": Fair, "fifo": Fifo}
"""Made of the quantum in steps and the seconds of ageing."""
DEFAULT_SCHEDULING = "fair"

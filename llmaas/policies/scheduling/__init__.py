"""Which call is served next, and for how long.

To add a policy, write a module here and enter it in ``SCHEDULING``. docs/scheduling.md says what each costs.
"""

from __future__ import annotations

from collections.abc import Callable

from llmaas.policies.scheduling.base import SchedulingPolicy
from llmaas.policies.scheduling.fair import Fair
from llmaas.policies.scheduling.fifo import Fifo

__all__ = ["DEFAULT_SCHEDULING", "SCHEDULING", "Fair", "Fifo", "SchedulingPolicy"]

SCHEDULING: dict[str, Callable[[int, float], SchedulingPolicy]] = {"fair": Fair, "fifo": Fifo}
"""Every policy by the name that settings give it. It is made from the quantum in steps and the ageing in seconds."""

DEFAULT_SCHEDULING = "fair"

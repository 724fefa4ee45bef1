"""Which chunks leave the POOL when room is needed.

To add a policy, write a module here and enter it in ``EVICTION``. docs/policies.md compares them.
"""

from __future__ import annotations

from collections.abc import Callable

from llmaas.policies.eviction.base import Arrival, EvictionPolicy, Gain
from llmaas.policies.eviction.lctru import Lctru
from llmaas.policies.eviction.lru import Lru
from llmaas.policies.eviction.next_use import NextUse

__all__ = ["DEFAULT_EVICTION", "EVICTION", "Arrival", "EvictionPolicy", "Gain", "Lctru", "Lru", "NextUse"]

EVICTION: dict[str, Callable[[], EvictionPolicy]] = {"lru": Lru, "lctru": Lctru, "returns": NextUse}
"""Every policy by the name that settings give it."""

DEFAULT_EVICTION = "returns"
"""docs/policies.md says why."""

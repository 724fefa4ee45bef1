"""Where the weights of a model are on this machine: nowhere, in a file, in RAM, or on a device.

Law: a value. Where chunks of contexts are is ``records.Tier``; what a cluster's placement goes by is coarser
(``policies.node_report.ModelTier``).
"""

from __future__ import annotations

import enum


class WeightsTier(enum.Enum):
    """The farthest first."""

    NONE = "NONE"
    """There is no file."""
    DISK = "DISK"
    """In the file alone: it must be read first."""
    PAGES = "PAGES"
    """In the page cache, as long as the system has room for them."""
    HELD = "HELD"
    """Locked in RAM, whatever else needs it."""
    GPU = "GPU"
    """Most of them in a device's own memory."""

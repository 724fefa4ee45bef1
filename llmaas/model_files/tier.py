"""Where the weights of a model are that no process uses: nowhere, in its files alone, or in the page cache too.

Law: looking changes nothing, and never fails. Where a model is that is used, its process knows.
"""

from __future__ import annotations

from pathlib import Path

from llmaas.config.models import parts_of
from llmaas.errors import LlmaasError
from llmaas.model_files.page_cache import missing_bytes
from llmaas.weights_tier import WeightsTier

_NEARLY_ALL = 0.99
"""The share of a file from which it counts as in the page cache: some pages always come and go."""


def tier_of(file: Path) -> WeightsTier:
    """NONE if one of the model's files cannot be opened; DISK also where the system does not tell what is in memory."""
    tier = WeightsTier.PAGES
    for part in parts_of(file):
        try:
            missing, size = missing_bytes(part), part.stat().st_size
        except (OSError, LlmaasError):
            return WeightsTier.NONE
        if missing is None or missing > size * (1 - _NEARLY_ALL):
            tier = WeightsTier.DISK
    return tier

"""How many bits each chunk is coded with. K and V never get fewer than 2.

The service prefers "tolerance", which is ``price_book``; "uniform" needs no code: every full chunk gets the precision
that was chosen. ``greedy`` and ``llms`` are for benches and tests.
"""

from __future__ import annotations

from llmaas.policies.bit_price.greedy import allocate
from llmaas.policies.bit_price.price_book import ChunkDemand, Price, PriceBook, demand
from llmaas.policies.bit_price.steps import BITS, K_ERROR, UNMEASURED, V_ERROR, Sensitivity, Size

__all__ = [
    "BITS",
    "K_ERROR",
    "SPENDING",
    "UNMEASURED",
    "V_ERROR",
    "ChunkDemand",
    "Price",
    "PriceBook",
    "Sensitivity",
    "Size",
    "allocate",
    "demand",
]

SPENDING = ("uniform", "tolerance")
"""What a service can be set to."""

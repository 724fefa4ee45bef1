"""With how many bits each chunk is coded, under one budget of bytes for all chunks. K and V get at least 2 bits each.

``SPENDING`` names the rules that a service can be set to. "tolerance" is ``price_book``: bits go where they remove the
most error per byte. "uniform" needs no code here: every full chunk gets the precision that the settings name. "llms"
is ``density``: the levels of LLMS, to compare with; no setting of the daemon chooses it. ``greedy`` and ``llms`` decide
for one list of chunks; benches and tests compare with them. ``several`` is one budget for several models.
"""

from __future__ import annotations

from llmaas.policies.bit_price.density import DensityLevels
from llmaas.policies.bit_price.greedy import allocate
from llmaas.policies.bit_price.price_book import ChunkDemand, Price, PriceBook, demand
from llmaas.policies.bit_price.several import BitCurve, shared_bits
from llmaas.policies.bit_price.steps import BITS, K_ERROR, UNMEASURED, V_ERROR, Sensitivity, Size

__all__ = [
    "BITS",
    "K_ERROR",
    "SPENDING",
    "UNMEASURED",
    "V_ERROR",
    "BitCurve",
    "ChunkDemand",
    "DensityLevels",
    "Price",
    "PriceBook",
    "Sensitivity",
    "Size",
    "allocate",
    "demand",
    "shared_bits",
]

SPENDING = ("uniform", "tolerance", "llms")

"""What the front process knows of a model that it serves.

Law: plain values, and functions that look at files and return at once. The model itself is not opened.
"""

from __future__ import annotations

from collections.abc import Callable

from llmaas.frozen import frozen
from llmaas.weights_tier import WeightsTier


@frozen
class FrontModel:
    """A model, with what it takes and may have."""

    name: str
    aliases: tuple[str, ...]
    file: str
    size_bytes: int
    command: tuple[str, ...]
    """What starts its process. The last argument says that a descriptor follows; others go before it."""
    nbytes: int
    """The memory that it takes, as far as is known."""
    pinned: bool = False
    pool_bytes: int = 0
    """What of ``nbytes`` its POOL may have."""
    expected_s: Callable[[], float | None] = lambda: None
    """Tells how long loading it takes."""
    tier: Callable[[], WeightsTier] = lambda: WeightsTier.DISK
    """Looks where its weights are while no process uses them."""
    disk_bytes: int = 0
    """What its chunks may take on disk."""
    stored: Callable[[], int] = lambda: 0
    """Looks how many bytes of chunks its store holds."""
    cells: int = 0
    """As its settings name them; they are a part of ``nbytes``."""
    least_cells: int = 0
    """The fewest that it may begin with where there is no room for all."""
    cell_bytes: int = 0
    """Of one; 0 if that is not known."""
    shares_bits: bool = False
    """Whether its chunks are coded by one budget of bits with those of others, if there is one."""

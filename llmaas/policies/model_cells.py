"""How many cells a model gets that is to be loaded beside others: llama.cpp makes them once, with the model's context.

Law: pure. It gets all that its settings name if there is room for them, else as many as there is room for; never fewer
than it needs: then others have to leave.
"""

from __future__ import annotations

_ROUND = 256
"""llama.cpp's cells come in so many."""


def cells_that_fit(room: int, *, bare: int, cell_bytes: int, least: int, most: int) -> int | None:
    """Cells for a model that takes ``bare`` bytes beside them, where ``room`` bytes are free; None if it does not fit
    with ``least`` either. ``cell_bytes``: of one; 0 if that is not known, so that it is all or none.

    >>> cells_that_fit(6000, bare=2000, cell_bytes=4, least=512, most=4096)
    768
    """
    if bare + most * cell_bytes <= room:
        return most
    if not cell_bytes or room < bare:
        return None
    fitting = (room - bare) // cell_bytes // _ROUND * _ROUND
    return fitting if least <= fitting < most else None


def cells_needed(longest: int, most: int) -> int:
    """The fewest cells of a model whose longest context has so many tokens: it can go on for a while.

    >>> cells_needed(1000, 8192), cells_needed(8000, 8192)
    (1280, 8192)
    """
    return min(most, -(-(longest + _ROUND) // _ROUND) * _ROUND)

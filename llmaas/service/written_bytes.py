"""How much is written to the data folder, as ``stats`` shows it.

Law: plain values of what the store counts.
"""

from __future__ import annotations

from llmaas.records import NO_QUOTA

_DAY_S = 86_400.0


def written_bytes(nbytes: int, seconds: float, budget: int) -> dict[str, object]:
    """``nbytes`` were written in the ``seconds`` since the start, chunks and index together; ``budget``: of chunks.

    ``a_day`` is the mean of all days, or of the first day what was written so far.

    >>> written_bytes(100, 7200.0, NO_QUOTA)
    {'total': 100, 'a_day': 100, 'budget': 'none'}
    >>> written_bytes(100, 4 * 86400.0, 30)
    {'total': 100, 'a_day': 25, 'budget': 30}
    """
    a_day = round(nbytes / max(1.0, seconds / _DAY_S))
    return {"total": nbytes, "a_day": a_day, "budget": "none" if budget >= NO_QUOTA else budget}

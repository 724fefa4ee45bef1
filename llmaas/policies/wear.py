"""Wear: what writing to DISK costs besides time, since flash bears only so many writes.

Law: pure. A policy says at which price a byte is written, in seconds of computing that it must save; whether a chunk
may be written in place of others, when the disk quota is used up; and whether last chunks that are not full are
written though the POOL has room for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from llmaas.records import NO_QUOTA

_DAY_S = 86_400.0
_PRICE = 1e-3 / 1e6
"""Seconds of computing that a written byte must save: 1 ms for a megabyte. A disk of 16 GB that bears 3,000 writes of
all of it takes 48 TB; at this price, these save 13 hours of waiting at least."""
_AMPLE = 0.5
"""While so much of the day's budget is left, the price is the usual one."""
_DOUBLINGS = 20.0
"""From there to nothing left the price doubles so often: no chunk is worth that."""
_TURNOVERS = 0.5
"""Of a quota that is used up, so much is written anew in a day, and as much as the quota at once before that."""


class DailyBytes:
    """Bytes that may be written: ``most`` at once, and ``daily`` more within a day (a token bucket).

    >>> budget = DailyBytes(most=100, daily=50)
    >>> budget.advance(0.0)
    >>> budget.take(100)
    >>> budget.advance(86_400.0)
    >>> budget.left
    50.0
    """

    def __init__(self, most: float, daily: float) -> None:
        self.most, self._daily = most, daily
        self.left = most
        self._now: float | None = None

    def advance(self, now: float) -> None:
        """It is ``now``, in seconds."""
        if self._now is not None:
            self.left = min(self.most, self.left + (now - self._now) * self._daily / _DAY_S)
        self._now = now

    def take(self, nbytes: int) -> None:
        """So many bytes are written. ``left`` may become negative."""
        self.left -= nbytes


class WearPolicy(Protocol):
    """``budget`` of its makers: bytes a day that chunks may take, NO_QUOTA: as many as are worth it; ``quota``: the
    disk quota in bytes."""

    @property
    def writes_last(self) -> bool:
        """Whether last chunks that are not full go to DISK as soon as their context has left CELLS."""

    @property
    def ahead(self) -> bool:
        """Whether chunks are written as soon as they were coded; else once the POOL needs their room."""

    @property
    def slack(self) -> float:
        """The part of the bit budget by which chunks may exceed it before those on DISK are coded again."""

    def advance(self, now: float) -> None:
        """It is ``now``, in seconds."""

    def price(self) -> float:
        """Seconds of computing that a byte must save to be written."""

    @property
    def ample(self) -> bool:
        """Whether the budget is far from used up: then the price is the usual one."""

    def wrote(self, nbytes: int) -> None:
        """So many bytes are being written."""

    def may_replace(self, nbytes: int) -> bool:
        """Whether so many bytes may be written in place of others, as the quota is used up."""

    def replaced(self, nbytes: int) -> None:
        """So many bytes are being written in place of others."""

    def set_quota(self, quota: int) -> None:
        """The disk quota is another one from now on."""


class Eager:
    """Everything is written, as often as it changes: what the first versions did, to compare with."""

    writes_last = True
    ahead = True
    slack = 0.0
    ample = True

    def __init__(self, budget: int, quota: int) -> None:
        pass

    def advance(self, now: float) -> None:
        pass

    def price(self) -> float:
        return -math.inf

    def wrote(self, nbytes: int) -> None:
        pass

    def may_replace(self, nbytes: int) -> bool:
        return True

    def replaced(self, nbytes: int) -> None:
        pass

    def set_quota(self, quota: int) -> None:
        pass


class Sparing:
    """The default: what is cheaper to compute again is not written, nor what would be dropped soon."""

    writes_last = False
    ahead = True
    slack = 1 / 8

    def __init__(self, budget: int, quota: int) -> None:
        self._budget = None if budget >= NO_QUOTA else DailyBytes(budget, budget)
        self._turnover = _turnover(quota)

    def advance(self, now: float) -> None:
        self._turnover.advance(now)
        if self._budget is not None:
            self._budget.advance(now)

    def price(self) -> float:
        return _PRICE * float(2.0 ** (_DOUBLINGS * self._short()))

    @property
    def ample(self) -> bool:
        return self._short() == 0

    def _short(self) -> float:
        """How short the budget is: 0 while it is ample, 1 when it is used up."""
        budget = self._budget
        if budget is None:
            return 0.0
        left = budget.left / budget.most if budget.most else 0.0
        return min(1.0, max(0.0, 1.0 - left / _AMPLE))

    def wrote(self, nbytes: int) -> None:
        if self._budget is not None:
            self._budget.take(nbytes)

    def may_replace(self, nbytes: int) -> bool:
        """Without a bound, contexts that are larger together than the quota would push each other out for ever."""
        return nbytes <= self._turnover.left

    def replaced(self, nbytes: int) -> None:
        self._turnover.take(nbytes)

    def set_quota(self, quota: int) -> None:
        self._turnover = _turnover(quota)


class Late(Sparing):
    """As the default, but nothing is written ahead of need: what LLMS' ahead-of-time writing is compared with."""

    ahead = False


def _turnover(quota: int) -> DailyBytes:
    return DailyBytes(quota, _TURNOVERS * quota)


WEAR: dict[str, Callable[[int, int], WearPolicy]] = {"sparing": Sparing, "eager": Eager, "late": Late}
"""Every policy by the name that settings give it."""
DEFAULT_WEAR = "sparing"

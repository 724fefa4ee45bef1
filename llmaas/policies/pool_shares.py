"""How one budget of POOL bytes is shared out among the models that are in memory.

Law: pure. The shares never exceed the budget together, no model gets more than it may have, and each that is in memory
gets a floor, or its part of what there is.

A model whose POOL is nearly full could use more, another one what it holds and a little. What models want beyond their
floors is met in proportion to how often they are used, as far as the budget reaches (filling like water: nobody gets
more than it wants while others want); what is left then goes the same way, up to what each may have. So bytes go from a
model that does not use them to one that evicts, and between two that both evict to the one that is used more often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmaas.frozen import frozen

_FLOOR = 1 / 16
"""Of what a model may have: without any, nothing could pass through its POOL to DISK (``pool_budget``)."""
_NEARLY_FULL = 7 / 8
_SPARE = 1 / 8
"""Of what a model holds it is left more, so that it is seen to want more."""
_SOONEST_S = 1.0
_ROUNDING = 1 + 1e-9


@frozen
class PoolClaim:
    """``most``: bytes that the model may have. ``used``: that it holds. ``share``: that it may hold now; None if it has
    just been loaded."""

    name: str
    most: int
    used: int
    share: int | None
    idle_s: float
    """Seconds since its last use."""
    between_s: float
    """Mean seconds between its uses."""

    @property
    def worth(self) -> float:
        """Uses a second."""
        return 1 / max(self.idle_s, self.between_s, _SOONEST_S)

    @property
    def floor(self) -> int:
        return int(self.most * _FLOOR)

    @property
    def wanted(self) -> int:
        """Bytes that it has a use for."""
        if self.share is None or self.used >= self.share * _NEARLY_FULL:
            return self.most
        return min(self.most, self.floor + int(self.used * (1 + _SPARE)))


def pool_shares(total: int, claims: Sequence[PoolClaim]) -> dict[str, int]:
    """Bytes for each model, by its name.

    >>> busy = PoolClaim("busy", most=160, used=100, share=100, idle_s=1, between_s=10)
    >>> pool_shares(200, [busy, PoolClaim("quiet", most=160, used=16, share=100, idle_s=900, between_s=600)])
    {'busy': 160, 'quiet': 40}
    """
    floors = {claim.name: claim.floor for claim in claims}
    if (needed := sum(floors.values())) > total:
        return {name: floor * total // needed for name, floor in floors.items()}
    weights = {claim.name: claim.worth for claim in claims}
    shares = filled(total - needed, floors, {claim.name: claim.wanted for claim in claims}, weights)
    return filled(total - sum(shares.values()), shares, {claim.name: claim.most for claim in claims}, weights)


def filled(
    left: int, shares: Mapping[str, int], wanted: Mapping[str, int], weights: Mapping[str, float]
) -> dict[str, int]:
    """``shares`` with ``left`` more bytes together, in proportion to ``weights``; none beyond what is ``wanted``."""
    found = dict(shares)
    open_ = [name for name in found if wanted[name] > found[name]]
    while open_ and left > 0:
        level = min((wanted[name] - found[name]) / weights[name] for name in open_)
        level = min(level, left / sum(weights[name] for name in open_))
        before = left
        for name in open_:
            need, share = wanted[name] - found[name], level * weights[name]
            n = min(left, need if need <= share * _ROUNDING else int(share))
            found[name] += n
            left -= n
        if left == before:
            break  # what is left is a few bytes, which whole numbers cannot share out
        open_ = [name for name in open_ if wanted[name] > found[name]]
    return found

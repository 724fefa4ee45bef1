"""How one quota of bytes on disk is shared out among the stores of several models.

Law: pure. A model has a part of the quota, in proportion to what its own settings let it have of it. Nobody loses
chunks within its part for another's sake, and what a model that is away holds stays until it is back. So the sum may
exceed the quota while one that is away holds more than its part; nobody grows meanwhile.

What a model does not use of its part others may borrow, and give back when it wants it. Shares do not follow how often
models are used, as those of the POOL do: what leaves the POOL is on disk, what leaves the disk must be computed again,
so shares that changed with every switch would throw away what the next switch needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.frozen import frozen
from llmaas.policies.pool_shares import filled

_NEARLY_FULL = 15 / 16
_SPARE = 1 / 8
"""Of what a model holds it is left more, and a part of its part, so that it is seen to want more."""
_LITTLE = 1 / 16


@frozen
class DiskClaim:
    """``most``: bytes that the model may have by its own settings. ``used``: that its store holds. ``share``: that it
    was told it may hold; None: nothing yet. ``there``: whether it is in memory, so that it can be told anything."""

    name: str
    most: int
    used: int
    share: int | None
    there: bool

    def wanted(self, part: int) -> int:
        """Bytes that it has a use for."""
        if self.share is not None and self.used >= self.share * _NEARLY_FULL:
            return self.most
        return min(self.most, int(self.used * (1 + _SPARE) + part * _LITTLE))


def disk_shares(total: int, claims: Sequence[DiskClaim]) -> dict[str, int]:
    """Bytes for each model that is in memory, by its name.

    >>> old = DiskClaim("old", most=80, used=70, share=None, there=False)
    >>> disk_shares(100, [DiskClaim("new", most=80, used=0, share=None, there=True), old])
    {'new': 30}
    """
    parts = _parts(total, claims)
    there = [claim for claim in claims if claim.there]
    shares = {claim.name: min(claim.used, parts[claim.name]) for claim in there}
    left = total - sum(claim.used for claim in claims if not claim.there) - sum(shares.values())
    weights = {claim.name: float(max(1, parts[claim.name])) for claim in there}
    wanted = {claim.name: claim.wanted(parts[claim.name]) for claim in there}
    for bound in (
        {name: min(parts[name], wanted[name]) for name in wanted},
        wanted,
        {claim.name: claim.most for claim in there},
    ):
        if left > 0:
            before = sum(shares.values())
            shares = filled(left, shares, bound, weights)
            left -= sum(shares.values()) - before
    return shares


def _parts(total: int, claims: Sequence[DiskClaim]) -> dict[str, int]:
    """What each has a right to."""
    most = {claim.name: min(claim.most, total) for claim in claims}
    together = sum(most.values())
    return most if together <= total else {name: n * total // together for name, n in most.items()}

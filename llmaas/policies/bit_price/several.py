"""One price for the bytes of several models' chunks: each tells its curve, and is told how many bits it may spend.

Law: pure. All chunks of all models in one price book would get the same bits, but for the rounding of one bucket.

A chunk's sensitivity is the relative change of the attention output, so a part of error counts the same in each model,
and a step of bits is worth the error that it removes per byte, whichever model's byte it is. So the models' histograms
of steps are added up, the price is found at which they take the common budget together, and each model gets the bytes
that it takes at this price. It then goes on with its own price book, which finds that price again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from llmaas.frozen import frozen


@frozen
class BitCurve:
    """What a model's chunks would do with bytes. ``values``: how many values of K and V they have. ``floor``: bytes of
    all of them with the fewest bits. ``steps``: bytes of the steps up from there, by bucket of gain per byte."""

    values: int
    floor: int
    steps: Mapping[int, int]

    def at(self, bucket: int, share: float) -> float:
        """Bytes if steps above ``bucket`` are worth their bytes, and of those in it this part."""
        above = sum(nbytes for each, nbytes in self.steps.items() if each > bucket)
        return self.floor + above + share * self.steps.get(bucket, 0)


def shared_bits(bits: float, curves: Mapping[str, BitCurve]) -> dict[str, float]:
    """Bits per value for each model, by its name: ``bits`` in the mean of all values. A model without chunks gets that.

    >>> sensitive, other = BitCurve(800, 300, {8: 100, 4: 100}), BitCurve(800, 300, {0: 100, -4: 100})
    >>> shared_bits(4.0, {"sensitive": sensitive, "other": other})
    {'sensitive': 5.0, 'other': 3.0}
    """
    found = dict.fromkeys(curves, bits)
    with_chunks = {name: curve for name, curve in curves.items() if curve.values}
    left = sum(curve.values * bits / 8 - curve.floor for curve in with_chunks.values())
    together = Counter[int]()
    for curve in with_chunks.values():
        together.update(curve.steps)
    bucket, share = _price(left, together)
    for name, curve in with_chunks.items():
        found[name] = 8 * curve.at(bucket, share) / curve.values
    return found


def _price(left: float, together: Mapping[int, int]) -> tuple[int, float]:
    """The bucket of the last steps that ``left`` bytes pay for, and which part of them."""
    bucket = max(together, default=0) + 1
    for bucket, nbytes in sorted(together.items(), reverse=True):
        if nbytes > max(left, 0.0):
            return bucket, max(left, 0.0) / nbytes
        left -= nbytes
    return bucket, 1.0

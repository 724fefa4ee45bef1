"""One budget of bits over the chunks of the models that are in memory: who is told what.

Law: ``policies.bit_price.shared_bits`` decides. A model that comes back begins with the bits that it had, so that
nothing is coded anew before it has said what it would do with them. Small changes are not told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from llmaas.front.process import ModelProcess, ProcessState
from llmaas.policies.bit_price.several import shared_bits

_LEAST_CHANGE = 0.05
"""Bits per value that are worth telling."""


class BitSharing:
    """``bits``: per value of K and V, in the mean of all. ``names``: the models whose chunks share them; those that are
    to code all chunks alike do not."""

    def __init__(self, bits: float, names: Collection[str]) -> None:
        self._bits, self._names = bits, set(names)
        self._told: set[str] = set()
        """Those that were told since they were loaded."""

    def settle(self, processes: Mapping[str, ModelProcess], now: float) -> None:
        """Tell the models their bits, by what their chunks would do with more."""
        ready = {name: processes[name] for name in self._names if processes[name].state is ProcessState.READY}
        self._told &= set(ready)
        curves = {name: each.curve for name, each in ready.items() if each.curve is not None}
        found = shared_bits(self._bits, curves)
        for name, each in ready.items():
            bits = found.get(name, each.bit_share or self._bits)
            if name not in self._told or abs(bits - (each.bit_share or 0.0)) >= _LEAST_CHANGE:
                self._told.add(name)
                each.give_bits(bits)

"""One budget of bits over the chunks of several models."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.policies.bit_price import BITS, K_ERROR, V_ERROR, BitCurve, PriceBook, demand, shared_bits
from llmaas.records import ChunkKey, Precision
from tests.policies.test_bit_price import Measured, heavy_tailed

CURVES = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(
        BitCurve,
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 40),
        st.dictionaries(st.integers(-480, 480), st.integers(1, 1 << 40), max_size=20),
    ),
)


@dataclass(frozen=True, slots=True)
class Model:
    """``scale``: its chunks have so many times 128 values."""

    chunks: list[Measured]
    scale: int

    def size(self, precision: Precision) -> int:
        """Bytes; scales of the coded form cost 48 bits for each 128 values."""
        return self.scale * (64 * precision.k + 64 * precision.v + 48) // 8

    @property
    def book(self) -> PriceBook:
        made = PriceBook(self.size, (1e-4, 1e-4))
        for chunk in self.chunks:
            made.add(demand(chunk))
        return made

    @property
    def values(self) -> int:
        return len(self.chunks) * self.scale * 128

    def curve(self) -> BitCurve:
        return self.book.curve(self.scale * 128)

    def coded(self, bits: float) -> tuple[int, float]:
        """Bytes and error of its chunks when its own price book spends so many bits per value."""
        book = self.book
        price = book.price(int(self.values * bits / 8))
        nbytes, error = 0, 0.0
        for i, chunk in enumerate(self.chunks):
            chosen = book.choose(demand(chunk), price, ChunkKey(random.Random(i).randbytes(16)))
            nbytes += self.size(chosen)
            error += chunk.k * K_ERROR[BITS.index(chosen.k)] + chunk.v * V_ERROR[BITS.index(chosen.v)]
        return nbytes, error


def times(factor: float, chunks: list[Measured]) -> list[Measured]:
    return [Measured(factor * chunk.k, factor * chunk.v) for chunk in chunks]


def coded(models: dict[str, Model], bits: dict[str, float]) -> tuple[int, float]:
    found = [model.coded(bits[name]) for name, model in models.items()]
    return sum(nbytes for nbytes, _ in found), sum(error for _, error in found)


@pytest.mark.parametrize("bits", [2.8, 3.5, 4.0, 5.0])
@pytest.mark.parametrize("factor", [0.01, 0.1, 1.0, 10.0])
def test_the_same_bytes_over_all_models_leave_less_error_than_each_models_own(bits: float, factor: float) -> None:
    models = {"a": Model(heavy_tailed(600, 1), 8), "b": Model(times(factor, heavy_tailed(900, 2)), 20)}
    shared = shared_bits(bits, {name: model.curve() for name, model in models.items()})
    alike = coded(models, dict.fromkeys(models, bits))
    found = coded(models, shared)
    assert found[0] == pytest.approx(alike[0], rel=0.01), "it takes no more bytes"
    assert found[1] <= 1.02 * alike[1]
    if factor == 0.01:
        assert found[1] < 0.8 * alike[1] and shared["a"] > bits > shared["b"]


def test_models_whose_chunks_are_alike_get_the_same_bits() -> None:
    curve = Model(heavy_tailed(300, 3), 4).curve()
    assert shared_bits(4.0, {"a": curve, "b": curve}) == pytest.approx({"a": 4.0, "b": 4.0}, abs=0.01)
    assert shared_bits(4.0, {"a": curve, "new": BitCurve(0, 0, {})})["new"] == 4.0


@settings(max_examples=300)
@given(CURVES, st.floats(2.5, 8.0))
def test_any_curves_give_numbers_that_take_no_more_than_the_budget(curves: dict[str, BitCurve], bits: float) -> None:
    found = shared_bits(bits, curves)
    assert set(found) == set(curves)
    floor = sum(curve.floor for curve in curves.values() if curve.values)
    budget = sum(curve.values for curve in curves.values()) * bits / 8
    taken = sum(found[name] * curve.values / 8 for name, curve in curves.items() if curve.values)
    assert taken <= max(budget, floor) * (1 + 1e-6) + 1
    for name, curve in curves.items():
        assert found[name] == bits if not curve.values else found[name] * curve.values / 8 >= curve.floor * (1 - 1e-6)

"""Prices and baselines: bits where they take most error away, within the budget."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.policies.bit_price import (
    BITS,
    K_ERROR,
    UNMEASURED,
    V_ERROR,
    ChunkDemand,
    DensityLevels,
    PriceBook,
    allocate,
    demand,
)
from llmaas.policies.bit_price.llms import llms
from llmaas.records import ChunkKey, Precision


@dataclass(frozen=True, slots=True)
class Measured:
    k: float
    v: float


PRIOR = (3e-4, 3e-4)
SENSITIVITY = st.floats(1e-7, 1.0)
CHUNKS = st.lists(st.builds(Measured, SENSITIVITY, SENSITIVITY), min_size=1, max_size=40)
BUDGET = st.floats(2.0, 8.5)
"""Bits per value."""


def nominal_size(precision: Precision) -> int:
    """Relative size of a chunk, in bits of 64 K and 64 V values: scales cost half a bit of K, a quarter of V."""
    return 64 * precision.k + 32 + 64 * precision.v + 16


def key(i: int) -> ChunkKey:
    return ChunkKey(random.Random(i).randbytes(16))


def nbytes(bits: float, n: int) -> int:
    return int(bits * 128 * n)


def error(chunks: list[Measured], chosen: list[Precision]) -> float:
    pairs = zip(chunks, chosen, strict=True)
    return sum(c.k * K_ERROR[BITS.index(p.k)] + c.v * V_ERROR[BITS.index(p.v)] for c, p in pairs)


def size(chosen: list[Precision]) -> int:
    return sum(map(nominal_size, chosen))


def book(demands: list[ChunkDemand]) -> PriceBook:
    made = PriceBook(nominal_size, PRIOR)
    for one in demands:
        made.add(one)
    return made


def priced(demands: list[ChunkDemand], budget: int) -> list[Precision]:
    made = book(demands)
    price = made.price(budget)
    return [made.choose(one, price, key(i)) for i, one in enumerate(demands)]


def heavy_tailed(n: int, seed: int) -> list[Measured]:
    draw = random.Random(seed)
    return [Measured(draw.lognormvariate(-8, 1.5), draw.lognormvariate(-8, 1.5)) for _ in range(n)]


# -- one list of chunks


@given(CHUNKS, BUDGET)
def test_an_allocation_stays_within_its_budget(chunks: list[Measured], bits: float) -> None:
    budget, least = nbytes(bits, len(chunks)), len(chunks) * nominal_size(Precision(2, 2))
    assert size(allocate(chunks, nominal_size, budget)) <= max(budget, least)


@settings(max_examples=20)
@given(st.lists(st.builds(Measured, SENSITIVITY, SENSITIVITY), min_size=2, max_size=2), BUDGET)
def test_no_choice_is_better_but_for_the_last_step_that_does_not_fit(chunks: list[Measured], bits: float) -> None:
    budget, largest_step = nbytes(bits, 2), 128
    every = [Precision(k, v) for k, v in itertools.product(BITS, BITS)]
    fitting = [list(p) for p in itertools.product(every, every) if size(list(p)) <= budget - largest_step]
    found = error(chunks, allocate(chunks, nominal_size, budget))
    assert all(found <= error(chunks, other) * (1 + 1e-9) for other in fitting)


@given(st.lists(SENSITIVITY, min_size=1, max_size=20, unique=True), BUDGET, st.randoms())
def test_an_allocation_does_not_depend_on_the_order(values: list[float], bits: float, draw: random.Random) -> None:
    chunks = [Measured(x, 2.7**3 * x) for x in values]
    order = draw.sample(range(len(chunks)), len(chunks))
    budget = nbytes(bits, len(chunks))
    shuffled = allocate([chunks[i] for i in order], nominal_size, budget)
    assert error([chunks[i] for i in order], shuffled) == pytest.approx(
        error(chunks, allocate(chunks, nominal_size, budget))
    )


def test_a_chunk_that_is_not_measured_yet_is_expected_to_suffer_more_than_others() -> None:
    others = [Measured(1e-4, 1e-4)] * 9
    chosen = allocate([*others, None], nominal_size, nbytes(3.4, 10))
    assert chosen[9].k > max(p.k for p in chosen[:9]) and chosen[9].v > max(p.v for p in chosen[:9])
    assert allocate([None, None], nominal_size, 0) == [Precision(2, 2)] * 2


# -- the whole service


@pytest.mark.parametrize("bits", [2.6, 3.0, 3.5, 4.0, 5.0, 7.0])
def test_the_price_spends_the_budget_nearly_as_well_as_sorting_every_step_would(bits: float) -> None:
    chunks = heavy_tailed(2000, seed=1)
    budget = nbytes(bits, len(chunks))
    chosen = priced([demand(c) for c in chunks], budget)
    assert size(chosen) == pytest.approx(budget, rel=0.005)
    assert error(chunks, chosen) <= 1.03 * error(chunks, allocate(chunks, nominal_size, budget))


@given(CHUNKS, BUDGET)
def test_the_bytes_are_off_by_no_more_than_the_chunks_at_the_price(chunks: list[Measured], bits: float) -> None:
    demands, budget = [demand(c) for c in chunks], nbytes(bits, len(chunks))
    made = book(demands)
    price = made.price(budget)
    none, all_of_them = (
        size([made.choose(s, price._replace(share=share), key(0)) for s in demands]) for share in (0.0, 1.0)
    )
    assert none <= max(budget, len(chunks) * nominal_size(Precision(2, 2)))
    assert none == all_of_them or all_of_them >= budget


@given(CHUNKS, BUDGET, BUDGET)
def test_a_larger_budget_takes_bits_from_nobody(chunks: list[Measured], one: float, other: float) -> None:
    demands = [demand(c) for c in chunks]
    less, more = (priced(demands, nbytes(bits, len(chunks))) for bits in sorted((one, other)))
    assert all(a.k <= b.k and a.v <= b.v for a, b in zip(less, more, strict=True))


@given(CHUNKS, BUDGET)
def test_cold_contexts_pay_first(chunks: list[Measured], bits: float) -> None:
    hot, cold = [demand(c) for c in chunks], [demand(c, heat=1 / 16) for c in chunks]
    made = book(hot + cold)
    price = made.price(nbytes(bits, 2 * len(chunks)))
    for i, (a, b) in enumerate(zip(hot, cold, strict=True)):
        kept, paid = made.choose(a, price, key(i)), made.choose(b, price, key(i))
        assert kept.k >= paid.k and kept.v >= paid.v


def test_heat_moves_bytes_from_cold_chunks_to_hot_ones() -> None:
    chunks = heavy_tailed(500, seed=2)
    chosen = priced([demand(c, heat=1.0 if i % 2 else 1 / 64) for i, c in enumerate(chunks)], nbytes(3.5, 500))
    assert size(chosen) == pytest.approx(nbytes(3.5, 500), rel=0.01)
    assert size(chosen[1::2]) > 1.4 * size(chosen[::2])


@given(CHUNKS, CHUNKS, BUDGET, st.randoms())
def test_the_price_knows_what_is_stored_and_not_how_it_came(
    stay: list[Measured], go: list[Measured], bits: float, draw: random.Random
) -> None:
    demands, gone = [demand(c) for c in stay], [demand(c) for c in go] + [demand(None)] * 3
    mixed = book(draw.sample(demands + gone, len(demands + gone)))
    for one in gone:
        mixed.remove(one)
    budget = nbytes(bits, len(stay))
    assert mixed.chunks == len(stay)
    assert mixed.price(budget) == book(demands).price(budget)


def test_chunks_that_are_not_measured_share_the_budget_by_their_keys() -> None:
    """So a service begins as a uniform one does, between two precisions where the budget is."""
    chosen = priced([demand(None)] * 4000, nbytes(3.6, 4000))
    assert size(chosen) == pytest.approx(nbytes(3.6, 4000), rel=0.01)
    assert {max(p.k, p.v) - min(p.k, p.v) for p in chosen} <= {0, 1}


def test_what_is_not_measured_is_expected_to_be_like_what_was() -> None:
    made = PriceBook(nominal_size, PRIOR)
    for _ in range(999):
        made.learn(Measured(1e-2, 1e-5))
    typical = demand(Measured(UNMEASURED * 1e-2, UNMEASURED * 1e-5))
    demands = [demand(c) for c in heavy_tailed(200, seed=3)]
    for one in demands:
        made.add(one)
    for bits in (2.5, 3.5, 4.5, 6.0):
        price = made.price(nbytes(bits, 200))
        new, like = (made.choose(s, price, key(0)) for s in (demand(None), typical))
        assert abs(BITS.index(new.k) - BITS.index(like.k)) <= 1 and abs(BITS.index(new.v) - BITS.index(like.v)) <= 1
        assert new.k > new.v or new.v == 8 or new.k == 2


def test_without_any_chunk_and_without_any_money_there_is_a_price() -> None:
    empty = PriceBook(nominal_size, PRIOR)
    assert empty.choose(demand(None), empty.price(0), key(0)) == Precision(8, 8)
    assert priced([demand(Measured(1.0, 1.0))], 0) == [Precision(2, 2)]
    assert priced([demand(Measured(0.0, 0.0))], 10**6) == [Precision(8, 8)]


def test_a_book_whose_chunks_all_left_is_as_small_as_a_new_one() -> None:
    demands = [demand(c) for c in heavy_tailed(50, seed=4)] + [demand(None, heat=1 / (1 + i)) for i in range(20)]
    made = book(demands)
    for one in demands:
        made.remove(one)
    assert str(vars(made)) == str(vars(book([])))


# -- baselines


def plain(precision: Precision) -> int:
    return 8 * (precision.k + precision.v)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), BUDGET)
def test_llms_gives_denser_chunks_no_fewer_bits_and_keeps_to_the_budget(densities: list[float], bits: float) -> None:
    chosen = llms(densities, plain, int(16 * bits * len(densities)))
    ranked = sorted(zip(densities, chosen, strict=True), key=lambda pair: (pair[0], pair[1].k))
    assert [p.k for _, p in ranked] == sorted(p.k for p in chosen)
    assert sum(map(plain, chosen)) <= 16 * bits * len(densities)


def test_llms_gives_all_chunks_4_bits_or_a_third_of_them_8_and_the_others_2() -> None:
    """At half of INT8; nothing between is ever its optimum."""
    half = 30 * plain(Precision(8, 8)) // 2
    flat, steep = [1.0] * 30, [1.0] + [0.0] * 29
    assert sorted(p.k for p in llms(flat, plain, half)) == [2] * 20 + [8] * 10
    assert llms(steep, plain, half) == [Precision(4, 4)] * 30


def test_llms_levels_are_those_of_its_rule_for_one_list() -> None:
    """Of densities that are spread out: a third at 8 bits, the rest at 2, or all at 4 where few have nearly all."""
    rng = random.Random(3)
    for densities in ([rng.random() for _ in range(300)], [rng.random() ** 12 for _ in range(300)]):
        levels = DensityLevels()
        for density in densities:
            levels.learn(density)
        chosen = [levels.choose(density) for density in densities]
        rule = llms(densities, lambda p: 4 * (p.k + p.v), 300 * 32)
        assert [(p.k, p.v) for p in chosen] == [(p.k, p.v) for p in rule]
    assert levels.choose(None) == Precision(4, 4)


def test_llms_levels_forget_the_oldest_densities() -> None:
    levels = DensityLevels()
    for _ in range(900):
        levels.learn(1.0)
    assert levels.choose(0.5).k == 2
    for i in range(2000):
        levels.learn(0.1 + i / 100_000)
    assert levels.choose(0.5).k == 8

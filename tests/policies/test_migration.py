"""What of a context is sent and what computed when it moves, and when it is handed over."""

from __future__ import annotations

import doctest
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies import migration
from llmaas.policies.linear_cost import LinearCost
from llmaas.policies.migration import MOST_ROUNDS, LinkCosts, Next, RoundPlan, ToMove, next_step, plan_round
from llmaas.records import CHUNK_TOKENS, TOKEN_BYTES

CHUNK = 403_264
"""Bytes of a chunk of SmolLM2 at 4 bits."""


def costs(bytes_per_s: float, tokens_per_s: float, send: float = 1e-3, step: float = 2e-3) -> LinkCosts:
    return LinkCosts(LinearCost(send, 1 / bytes_per_s), LinearCost(step, 1 / tokens_per_s))


COSTS = st.builds(costs, st.floats(1e4, 1e9), st.floats(5, 1e5), st.floats(1e-5, 0.1), st.floats(1e-5, 0.1))
SIZES = st.lists(st.one_of(st.just(0), st.integers(1, 1 << 22)), max_size=40)


def moved(sizes: Sequence[int], tail: int) -> ToMove:
    return ToMove(len(sizes) * CHUNK_TOKENS + tail, sizes)


def seconds_of(move: ToMove, found: LinkCosts, n_sent: int) -> float:
    """What a round takes in which the last ``n_sent`` chunks are sent."""
    sent = move.chunks[len(move.chunks) - n_sent :]
    tail = move.n_tokens - len(move.chunks) * CHUNK_TOKENS
    computed = (len(move.chunks) - n_sent) * CHUNK_TOKENS
    link = found.send_s(TOKEN_BYTES * move.n_tokens + sum(sent))
    return max(found.compute_s(computed), link) + found.compute_s(tail)


@given(SIZES, st.integers(0, 63), COSTS)
def test_no_split_is_better_and_what_is_not_stored_is_computed(sizes: list[int], tail: int, found: LinkCosts) -> None:
    move = moved(sizes, tail)
    plan = plan_round(move, found)
    possible = [n for n in range(len(sizes) + 1) if all(sizes[len(sizes) - n :])]
    assert plan.n_sent in possible
    assert plan.n_computed + plan.n_sent * CHUNK_TOKENS == move.n_tokens, "each token once"
    assert plan.seconds == pytest.approx(seconds_of(move, found, plan.n_sent))
    assert plan.seconds <= min(seconds_of(move, found, n) for n in possible) * (1 + 1e-9)


@given(SIZES, st.integers(0, 63), COSTS)
def test_both_is_never_worse_than_either(sizes: list[int], tail: int, found: LinkCosts) -> None:
    """Chunks alone, where all are stored, and tokens alone."""
    move = moved(sizes, tail)
    best = plan_round(move, found).seconds
    assert best <= plan_round(move, found, with_chunks=False).seconds * (1 + 1e-9)
    if all(sizes):
        assert best <= seconds_of(move, found, len(sizes)) * (1 + 1e-9)


def test_a_fast_link_sends_a_slow_one_computes_and_one_between_does_both() -> None:
    move = moved([CHUNK] * 46, 56)  # 3,000 tokens
    fast, between, slow = (plan_round(move, costs(bits / 8, 200.0)) for bits in (1e9, 1e7, 1e4))
    assert fast.n_sent == 46 and slow.n_sent == 0 and 10 < between.n_sent < 36
    assert plan_round(move, costs(1e9 / 8, 200.0), with_chunks=False) == RoundPlan(3000, 0, pytest.approx(15, rel=0.1))


@given(COSTS, st.floats(1e-4, 1.0), st.integers(0, 5000))
def test_rounds_end_and_each_makes_the_pause_shorter(found: LinkCosts, decode_s: float, n_tokens: int) -> None:
    """The source goes on while each round is brought, exactly as fast as is expected."""
    move, pauses = ToMove(n_tokens, ()), list[float]()
    for n_rounds in range(MOST_ROUNDS + 1):
        step, plan = next_step(move, found, decode_s=decode_s, n_rounds=n_rounds)
        pauses.append(plan.seconds)
        if step is Next.HAND_OVER:
            break
        move = ToMove(int(plan.seconds / decode_s), ())
    else:
        pytest.fail("it never ends")
    assert pauses == sorted(pauses, reverse=True)


@given(COSTS, st.floats(1e-4, 1.0), st.integers(0, 5000))
def test_another_round_would_not_have_been_worth_it(found: LinkCosts, decode_s: float, n_tokens: int) -> None:
    step, plan = next_step(ToMove(n_tokens, ()), found, decode_s=decode_s, n_rounds=0)
    later = plan_round(ToMove(int(plan.seconds / decode_s), ()), found).seconds
    assert (step is Next.ROUND) == (later < migration.LEAST_GAIN * plan.seconds)


def test_a_context_that_rests_moves_in_one_go() -> None:
    move = moved([CHUNK] * 10, 3)
    assert next_step(move, costs(1e7, 100.0), decode_s=0.0, n_rounds=0)[0] is Next.HAND_OVER
    assert next_step(move, costs(1e7, 1e3), decode_s=0.02, n_rounds=0)[0] is Next.ROUND
    assert next_step(move, costs(1e7, 1e3), decode_s=0.02, n_rounds=MOST_ROUNDS)[0] is Next.HAND_OVER


def test_a_source_that_is_as_fast_as_what_brings_its_tokens_is_handed_over() -> None:
    step, _ = next_step(ToMove(500, ()), costs(1e7, 50.0), decode_s=0.02, n_rounds=0)
    assert step is Next.HAND_OVER, "50 tokens a second on both sides: no round gains anything"


def test_what_a_link_takes_is_learned() -> None:
    move, found = moved([CHUNK] * 46, 56), costs(1e9, 200.0)
    assert plan_round(move, found).n_sent == 46
    for _ in range(8):  # it is a mobile link
        found.sent(CHUNK, CHUNK / 1e4)
        found.sent(4 * CHUNK, 4 * CHUNK / 1e4)
        found.computed(512, 512 / 200)
    assert plan_round(move, found).n_sent == 0
    assert found.send_s(10 * CHUNK) == pytest.approx(10 * CHUNK / 1e4, rel=0.2)


def test_chunks_are_of_tokens_that_are_there() -> None:
    with pytest.raises(ValueError, match="more than"):
        ToMove(63, [1])


def test_the_examples_are_right() -> None:
    assert doctest.testmod(migration).failed == 0

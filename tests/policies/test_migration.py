"""What of a context is sent and what computed when it moves, and when it is handed over."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies import migration
from llmaas.policies.linear_cost import LinearCost
from llmaas.policies.migration import LEAST_GAIN, MOST_ROUNDS, LinkCosts, Next, next_step, sends_more

CHUNK = 403_264
"""Bytes of a chunk of SmolLM2 at 4 bits."""
CHUNK_COMPUTE_S = 0.1


def costs(bytes_per_s: float, tokens_per_s: float, send: float = 1e-3, step: float = 2e-3) -> LinkCosts:
    return LinkCosts(LinearCost(send, 1 / bytes_per_s), LinearCost(step, 1 / tokens_per_s))


COSTS = st.builds(costs, st.floats(1e4, 1e9), st.floats(5, 1e5), st.floats(1e-5, 0.1), st.floats(1e-5, 0.1))


def moved_s(found: LinkCosts, bytes_per_s: float, n_chunks: int = 46) -> float:
    """What it takes until all is there, over a link of that speed."""
    n_left, spent = n_chunks, 0.0
    while sends_more(found, n_left * CHUNK, n_left * CHUNK_COMPUTE_S):
        seconds = CHUNK / bytes_per_s
        found.sent(CHUNK, seconds)
        n_left, spent = n_left - 1, spent + seconds
    return spent + n_left * CHUNK_COMPUTE_S


@pytest.mark.parametrize("bits_per_s", [1e6, 1e7, 2.9e7, 3.5e7, 1e8, 1e9])
def test_it_is_about_as_fast_as_the_faster_of_the_two_ways_on_a_link_that_is_not_known(bits_per_s: float) -> None:
    """46 chunks: 3,000 tokens. What a chunk more costs that is sent to see is allowed for."""
    better = 46 * min(CHUNK * 8 / bits_per_s, CHUNK_COMPUTE_S)
    assert moved_s(costs(1e8, 500.0), bits_per_s / 8) <= 1.1 * better + CHUNK * 8 / bits_per_s
    known = costs(bits_per_s / 8, 500.0)
    assert moved_s(known, bits_per_s / 8) <= 1.1 * better


def test_nothing_is_sent_where_nothing_is_left() -> None:
    assert not sends_more(costs(1e9, 1e3), 0, 0.0)


@given(COSTS, st.floats(1e-4, 1.0), st.integers(0, 5000))
def test_rounds_end_and_each_makes_the_pause_shorter(found: LinkCosts, decode_s: float, n_tokens: int) -> None:
    """The source goes on while each round is brought, exactly as fast as is expected."""
    pauses = list[float]()
    for n_rounds in range(MOST_ROUNDS + 1):
        pauses.append(found.bring_s(n_tokens))
        if next_step(n_tokens, found, decode_s=decode_s, n_rounds=n_rounds) is Next.HAND_OVER:
            break
        n_tokens = int(pauses[-1] / decode_s)
    else:
        pytest.fail("it never ends")
    assert pauses == sorted(pauses, reverse=True)


@given(COSTS, st.floats(1e-4, 1.0), st.integers(0, 5000))
def test_another_round_would_not_have_been_worth_it(found: LinkCosts, decode_s: float, n_tokens: int) -> None:
    step, pause = next_step(n_tokens, found, decode_s=decode_s, n_rounds=0), found.bring_s(n_tokens)
    assert (step is Next.ROUND) == (found.bring_s(int(pause / decode_s)) < LEAST_GAIN * pause)


def test_a_context_that_rests_moves_in_one_go() -> None:
    assert next_step(643, costs(1e7, 100.0), decode_s=0.0, n_rounds=0) is Next.HAND_OVER
    assert next_step(643, costs(1e7, 1e3), decode_s=0.02, n_rounds=0) is Next.ROUND
    assert next_step(643, costs(1e7, 1e3), decode_s=0.02, n_rounds=MOST_ROUNDS) is Next.HAND_OVER


def test_a_source_that_is_as_fast_as_what_brings_its_tokens_is_handed_over() -> None:
    step = next_step(500, costs(1e7, 50.0), decode_s=0.02, n_rounds=0)
    assert step is Next.HAND_OVER, "50 tokens a second on both sides: no round gains anything"


def test_what_a_link_takes_is_learned() -> None:
    found = costs(1e9, 200.0)
    for _ in range(8):  # it is a mobile link
        found.sent(CHUNK, CHUNK / 1e4)
        found.sent(4 * CHUNK, 4 * CHUNK / 1e4)
        found.brought(64, 64 / 100)
    assert found.send_s(10 * CHUNK) == pytest.approx(10 * CHUNK / 1e4, rel=0.2)
    assert found.bring_s(64) == pytest.approx(0.64, rel=0.2)


def test_the_examples_are_right() -> None:
    assert doctest.testmod(migration).failed == 0

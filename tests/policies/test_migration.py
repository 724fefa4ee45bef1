"""What of a context is sent and what computed when it moves, and when it is handed over."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies import migration
from llmaas.policies.linear_cost import LinearCost
from llmaas.policies.migration import (
    FEW,
    LEAST_GAIN,
    LEAST_SHARE,
    MOST_ROUNDS,
    LinkCosts,
    Next,
    computes_meanwhile,
    next_step,
    sends_more,
)

CHUNK = 403_264
"""Bytes of a chunk of SmolLM2 at 4 bits."""
CHUNK_COMPUTE_S = 0.1


def costs(bytes_per_s: float) -> LinkCosts:
    return LinkCosts(LinearCost(1e-3, 1 / bytes_per_s))


def moved_s(found: LinkCosts, bytes_per_s: float, n_chunks: int = 46) -> float:
    """What it takes until all is there, over a link of that speed. One chunk is always sent, to see what it takes."""
    n_left, spent, computed, computes = n_chunks - 1, CHUNK / bytes_per_s, 0.0, False
    found.sent(CHUNK, spent)
    while n_left > computed:
        compute_s = (n_left - computed) * CHUNK_COMPUTE_S
        computes = computes or computes_meanwhile(n_left * found.send_s(CHUNK), compute_s)
        if computes and not sends_more(found.send_s(CHUNK), compute_s):
            break
        seconds = CHUNK / bytes_per_s
        found.sent(CHUNK, seconds)
        n_left, spent, computed = n_left - 1, spent + seconds, computed + computes * seconds / CHUNK_COMPUTE_S
    return spent + max(0.0, n_left - computed) * CHUNK_COMPUTE_S


@pytest.mark.parametrize("bits_per_s", [1e6, 1e7, 2.9e7, 3.5e7, 1e8, 1e9])
def test_it_is_as_fast_as_both_ways_together_on_a_link_that_is_not_known(bits_per_s: float) -> None:
    """46 chunks: 3,000 tokens. What is sent to see how fast it goes is allowed for."""
    link_s, compute_s = 46 * CHUNK * 8 / bits_per_s, 46 * CHUNK_COMPUTE_S
    both = 1 / (1 / link_s + 1 / compute_s) if link_s > LEAST_SHARE * compute_s else link_s
    assert both <= moved_s(costs(1e8), bits_per_s / 8) <= 1.02 * both + 2 * CHUNK * 8 / bits_per_s


@given(st.integers(0, 5000), st.floats(0.0, 1.5), st.floats(0.0, 50.0))
def test_rounds_end_and_each_but_the_last_made_the_pause_shorter(first: int, ratio: float, overhead: float) -> None:
    """``ratio``: what the source adds while the target takes a token; ``overhead``: while a round does nothing."""
    left = [first]
    while next_step(left) is Next.ROUND:
        left.append(int(overhead + ratio * left[-1]))
    assert len(left) <= MOST_ROUNDS
    assert left[:-1] == sorted(left[:-1], reverse=True)
    assert len(left) == 1 or left[-1] <= FEW or len(left) == MOST_ROUNDS or left[-1] >= LEAST_GAIN * left[-2]


@pytest.mark.parametrize("ratio, overhead", [(0.8, 1.0), (0.4, 3.0), (0.1, 0.5)])
def test_rounds_come_near_to_the_fewest_tokens_that_can_be_left(ratio: float, overhead: float) -> None:
    left = [40]
    while next_step(left) is Next.ROUND:
        left.append(int(overhead + ratio * left[-1]))
    assert min(left) <= 1.5 * overhead / (1 - ratio) + FEW


def test_a_context_that_rests_moves_in_one_go_and_a_source_that_is_as_fast_as_its_target_in_two() -> None:
    assert next_step([0]) is Next.HAND_OVER
    assert next_step([500]) is Next.ROUND
    assert next_step([500, 500]) is Next.HAND_OVER, "no round gains anything"


def test_a_round_that_was_held_up_is_not_the_last() -> None:
    """To hand over right then would make the pause as long as whatever held it up."""
    assert next_step([40, 20, 60]) is Next.ROUND
    assert next_step([40, 20, 60, 19]) is Next.HAND_OVER
    assert next_step([40, 20, 60, 12]) is Next.ROUND, "it has become shorter again"
    assert next_step([40, 20, 60, 60]) is Next.HAND_OVER, "that is how it is now"
    assert next_step([40, 60]) is Next.HAND_OVER, "no round has made it shorter yet: none may"


@given(st.lists(st.integers(FEW + 1, 5000), min_size=1, max_size=MOST_ROUNDS))
def test_of_rounds_of_any_kind_at_most_two_in_a_row_gain_nothing(left: list[int]) -> None:
    for n in range(1, len(left) + 1):
        if next_step(left[:n]) is Next.HAND_OVER:
            return
        recent, best = left[max(0, n - 2) : n], min(left[: max(0, n - 2)], default=5001)
        assert min(recent) < best, "the last two have made it no shorter, and a third follows"


def test_what_a_link_takes_is_learned() -> None:
    found = costs(1e9)
    for _ in range(8):  # it is a mobile link
        found.sent(CHUNK, CHUNK / 1e4)
        found.sent(4 * CHUNK, 4 * CHUNK / 1e4)
    assert found.send_s(10 * CHUNK) == pytest.approx(10 * CHUNK / 1e4, rel=0.2)


def test_the_examples_are_right() -> None:
    assert doctest.testmod(migration).failed == 0

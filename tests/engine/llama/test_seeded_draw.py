"""Draws by chance, made again from a seed and a number."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from llmaas.engine.llama.lib import C
from llmaas.engine.llama.seeded_draw import CANDIDATE, SeededDraw
from llmaas.native import load_library


def drawn(draw: SeededDraw, logits: list[float]) -> tuple[int, list[float]]:
    """The place that was selected, and the chances."""
    rows = np.zeros(len(logits), CANDIDATE)
    rows["id"], rows["logit"] = np.arange(len(logits)), logits
    array = C.llama_token_data_array(rows.ctypes.data_as(C.llama_token_data_p), len(logits), -1, False)
    C.llama_sampler_apply(draw.link, ctypes.byref(array))
    return int(array.selected), rows["p"].tolist()


@pytest.mark.parametrize("in_c", [True, False], ids=["C", "Python"])
def test_tokens_come_as_often_as_their_chances_say(in_c: bool) -> None:
    draw, chances = SeededDraw(5, in_c=in_c), [0.5, 0.125, 0.3, 0.075]
    counts = np.zeros(4)
    for _ in range(8000):
        place, told = drawn(draw, np.log(chances).tolist())
        counts[place] += 1
        C.llama_sampler_accept(draw.link, place)
    assert told == pytest.approx(chances, rel=1e-5)
    assert counts / 8000 == pytest.approx(chances, abs=0.02), "four times the deviation that chance leaves"


def test_both_ways_draw_the_same_and_tries_and_places_differ() -> None:
    built = load_library(__file__.replace("tests/", "llmaas/"), "_dist", lambda library: True)
    assert built is not None, "the C part was not built: scripts/setup"
    logits = np.random.default_rng(1).normal(0, 3, 300).tolist()

    def of(seed: int, *, in_c: bool) -> list[int]:
        draw, found = SeededDraw(seed, in_c=in_c), []
        for i in range(60):
            found.append(drawn(draw, logits)[0])
            if i % 3 == 2:
                C.llama_sampler_accept(draw.link, found[-1])
        return found

    assert of(1, in_c=True) == of(1, in_c=False) != of(2, in_c=True)
    assert len(set(of(1, in_c=True))) > 10, "neither a try nor a token is drawn as the one before"


@pytest.mark.parametrize("in_c", [True, False], ids=["C", "Python"])
def test_what_has_no_chance_is_never_drawn(in_c: bool) -> None:
    draw, low = SeededDraw(5, in_c=in_c), -float("inf")
    assert {drawn(draw, [low, 1.0, low])[0] for _ in range(200)} == {1}
    assert drawn(draw, [3.0]) == (0, [1.0])
    assert {drawn(draw, [low, 0.0, 0.0, low])[0] for _ in range(200)} == {1, 2}

"""How an answer is sampled: what the user says, else what the model's file suggests, else what chat does."""

from __future__ import annotations

import argparse

import pytest

from llmaas.calls import Sampling
from llmaas.cli.generation import add_generation, sampling
from llmaas.errors import BadRequest


def made(line: str, suggested: dict[str, object]) -> Sampling:
    parser = argparse.ArgumentParser()
    add_generation(parser)
    return sampling(parser.parse_args(line.split()), suggested)


def test_a_person_is_not_answered_greedily() -> None:
    assert made("", {}) == Sampling(temperature=0.7, top_p=0.95, min_p=0.05)


def test_what_the_model_suggests_comes_before_that() -> None:
    assert made("", {"temperature": 1.0, "top_k": 64}) == Sampling(1.0, 64, 0.95, 0.05)


def test_what_the_user_says_comes_before_all() -> None:
    assert made("--temperature 0 --top-k 5", {"temperature": 1.0, "top_p": 0.8}) == Sampling(0.0, 5, 0.8, 0.05)


def test_a_suggestion_that_this_client_does_not_know_is_left_out() -> None:
    assert made("", {"xtc_threshold": 0.1, "temperature": 0.6}) == Sampling(temperature=0.6)


def test_a_wrong_value_is_refused() -> None:
    with pytest.raises(BadRequest, match="temperature must be in"):
        made("--temperature 99", {})

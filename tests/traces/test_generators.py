from __future__ import annotations

import itertools
import statistics
from collections import Counter
from pathlib import Path

import pytest

from llmaas.traces import bursts, evening, phone, switching
from llmaas.traces.files import load
from llmaas.traces.generators import ABOUT, generate

SAMPLES = Path(__file__).parents[2] / "traces"


@pytest.mark.parametrize("pattern", ABOUT)
def test_no_context_of_a_made_trace_outgrows_the_model_and_time_goes_forward(pattern: str) -> None:
    lengths: Counter[object] = Counter()
    t = 0.0
    for call in generate(pattern, contexts=6, limit=2048, seed=3, hours=72):
        lengths[call.app, call.context] += call.prompt + call.generate
        assert t <= call.t
        t = call.t
    assert 1024 < max(lengths.values()) <= 2048
    assert len(lengths) > 6, "a full context makes way for a new conversation"


def test_markov_favours_recent_contexts_and_turns_none() -> None:
    def again(pattern: str) -> float:
        names = [call.context.partition(".")[0] for call in switching.make(pattern, 8)]
        return sum(a == b for a, b in itertools.pairwise(names)) / len(names)

    assert again("turns") == 0.0 < again("random") < 0.2 < again("markov")


def test_the_same_seed_makes_the_same_trace() -> None:
    assert list(phone.make(5)) == list(phone.make(5)) != list(phone.make(6))


def test_a_phone_is_used_when_it_is_unlocked() -> None:
    unlocks = [1e5 * i for i in range(1, 100)]
    calls = list(phone.make(1, hours=1e9, unlocks=unlocks))
    assert len(calls) > 100
    longest = 30 * 1500
    """Activations of an unlock, and seconds of an activation, at most."""
    assert all(call.t >= 1e5 and call.t % 1e5 < longest for call in calls)


def test_bursts_vary_eight_times_as_much_as_their_mean_gap() -> None:
    times = [call.t for call in bursts.make(8, hours=2000)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert 0.8 < statistics.fmean(gaps) / bursts.GAP_S < 1.2
    assert 7 < statistics.pstdev(gaps) / statistics.fmean(gaps) < 9
    assert list(bursts.make(8, seed=2)) == list(bursts.make(8, seed=2)) != list(bursts.make(8, seed=3))


def test_an_unknown_pattern_is_an_error() -> None:
    with pytest.raises(ValueError, match="no generator"):
        generate("chaos", contexts=2, limit=512, seed=1, hours=1)
    with pytest.raises(ValueError, match="a pattern is one of"):
        list(switching.make("chaos", 2))


def test_the_samples_are_what_the_generators_make() -> None:
    assert load(SAMPLES / "evening.jsonl") == list(evening.make())
    assert load(SAMPLES / "phone.jsonl") == list(phone.make(1))
    assert load(SAMPLES / "markov.jsonl") == list(switching.make("markov", 8, hours=24))

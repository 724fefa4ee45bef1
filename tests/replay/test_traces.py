from __future__ import annotations

import itertools
from collections import Counter

from traces import phone, switching


def test_no_context_of_a_made_trace_outgrows_the_model_and_time_goes_forward() -> None:
    made = [switching.make(pattern, 6, limit=2048) for pattern in switching.PATTERNS]
    for lines in (*made, phone.make(3, limit=2048)):
        lengths: Counter[object] = Counter()
        t = 0.0
        for line in lines:
            lengths[line["context"]] += int(line["prompt"]) + int(line["generate"])
            assert t <= float(line["t"])
            t = float(line["t"])
        assert 1024 < max(lengths.values()) <= 2048
        assert len(lengths) > 6, "a full context makes way for a new conversation"


def test_markov_favours_recent_contexts_and_turns_none() -> None:
    def again(pattern: str) -> float:
        names = [str(line["context"]).partition(".")[0] for line in switching.make(pattern, 8)]
        return sum(a == b for a, b in itertools.pairwise(names)) / len(names)

    assert again("turns") == 0.0 < again("random") < 0.2 < again("markov")


def test_the_same_seed_makes_the_same_trace() -> None:
    assert list(phone.make(5)) == list(phone.make(5)) != list(phone.make(6))

"""How much of a context is recomputed while the rest is read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.split import SPLIT, Hole


def hole(compute: float, read: float, place: float, n: int = 20, pending: float = 0.0) -> Hole:
    """``n`` chunks alike, with seconds for each."""
    return Hole(
        compute=[i * compute for i in range(n + 1)],
        read=[pending + i * read for i in range(n + 1)],
        place=[i * place for i in range(n + 1)],
    )


@given(st.floats(1e-4, 10), st.floats(1e-4, 10), st.floats(1e-5, 1e-2), st.integers(1, 60), st.floats(0, 5))
def test_no_split_is_better_than_the_balanced_one(
    compute: float, read: float, place: float, n: int, pending: float
) -> None:
    asked = hole(compute, read, place, n, pending)
    found = asked.seconds(SPLIT["balanced"]().split(asked))
    assert found <= min(asked.seconds(m) for m in range(n + 1))


def test_a_fast_disk_is_only_read_and_a_dead_slow_one_never() -> None:
    for name, split in SPLIT.items():
        fast, even, slow = (split().split(hole(1.0, read, 0.001)) for read in (0.01, 1.0, 100.0))
        assert (fast, slow) == {"load_first": (0, 0), "recompute_first": (20, 20), "balanced": (0, 20)}[name]
        if name == "balanced":
            assert 9 <= even <= 11


def test_what_is_already_being_read_counts_for_the_reading_side() -> None:
    balanced = SPLIT["balanced"]()
    assert balanced.split(hole(1.0, 1.0, 0.001, pending=10.0)) > balanced.split(hole(1.0, 1.0, 0.001)) + 3

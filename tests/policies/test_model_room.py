"""Which models leave memory for another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.model_room import ModelInMemory, models_to_leave

MODELS = st.lists(
    st.builds(
        ModelInMemory,
        st.just(""),
        st.integers(1, 1000),
        st.floats(0.1, 20),
        st.floats(0, 1e4),
        st.floats(1, 1e4),
        st.booleans(),
    ),
    max_size=7,
)


@given(MODELS, st.integers(-10, 3000))
def test_what_leaves_is_free_to_go_is_enough_and_none_of_it_is_too_much(models: list[ModelInMemory], need: int) -> None:
    named = [ModelInMemory(str(i), m.nbytes, m.load_s, m.idle_s, m.between_s, m.stays) for i, m in enumerate(models)]
    found = models_to_leave(need, named)
    free = sum(m.nbytes for m in named if not m.stays)
    if found is None:
        assert free < need
        return
    leaving = [m for m in named if m.name in found]
    assert len(leaving) == len(found) and not any(m.stays for m in leaving)
    total = sum(m.nbytes for m in leaving)
    assert total >= need
    assert all(total - m.nbytes < need for m in leaving)


def test_the_one_that_is_used_least_or_is_back_soonest_goes_first() -> None:
    base = {"nbytes": 100, "load_s": 2.0, "idle_s": 50.0, "between_s": 50.0}
    usual = ModelInMemory("usual", **base)  # type: ignore[arg-type]
    for change in ({"idle_s": 500.0}, {"load_s": 0.5}, {"nbytes": 400}, {"between_s": 500.0}):
        other = ModelInMemory("other", **{**base, **change})  # type: ignore[arg-type]
        assert models_to_leave(100, [usual, other]) == ["other"], change


def test_pinned_models_stay_whatever_is_needed() -> None:
    assert models_to_leave(1, [ModelInMemory("a", 100, 1, 1e6, 1e6, stays=True)]) is None
    assert models_to_leave(0, []) == []

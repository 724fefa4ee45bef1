"""One budget of POOL bytes over several models."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.pool_shares import PoolClaim, pool_shares

MIB = 1 << 20
CLAIMS = st.lists(
    st.builds(
        PoolClaim,
        st.just(""),
        st.integers(0, 1 << 34),
        st.integers(0, 1 << 34),
        st.none() | st.integers(0, 1 << 34),
        st.floats(0, 1e6),
        st.floats(0, 1e6),
    ),
    max_size=8,
)


def claim(name: str, used: int, share: int | None, every_s: float, most: int = 1024) -> PoolClaim:
    return PoolClaim(name, most * MIB, used * MIB, None if share is None else share * MIB, 0.0, every_s)


def shared(total: int, *claims: PoolClaim) -> dict[str, int]:
    return {name: n >> 20 for name, n in pool_shares(total * MIB, claims).items()}


@given(CLAIMS, st.integers(0, 1 << 36))
def test_shares_fit_into_the_budget_and_leave_nobody_without(claims: list[PoolClaim], total: int) -> None:
    named = [replace(each, name=str(i)) for i, each in enumerate(claims)]
    found = pool_shares(total, named)
    assert set(found) == {each.name for each in named} and sum(found.values()) <= total
    for each in named:
        assert 0 <= found[each.name] <= each.most
        assert found[each.name] >= each.floor or sum(each.floor for each in named) > total
    if sum(each.most for each in named) <= total - len(named):
        assert all(found[each.name] >= each.most - len(named) for each in named), "there is enough for all"
    open_ = [each for each in named if found[each.name] < each.most]
    if open_ and sum(each.floor for each in named) <= total:
        assert total - sum(found.values()) <= 2 * len(named) + 2, "nothing is left while somebody could have it"


def test_one_model_alone_gets_all_that_it_may_have() -> None:
    assert shared(2000, claim("a", 0, None, 10)) == {"a": 1024}
    assert shared(500, claim("a", 0, None, 10)) == {"a": 500}
    assert shared(500) == {}


def test_what_one_does_not_use_is_anothers() -> None:
    quiet, full = claim("quiet", 100, 512, 1.0), claim("full", 512, 512, 600.0)
    found = shared(1024, quiet, full)
    assert found["full"] > 800 and 100 < found["quiet"] < 200, "though the quiet one is used more often"
    again = shared(1024, claim("quiet", 170, found["quiet"], 1.0), claim("full", 800, found["full"], 600.0))
    assert again["quiet"] > found["quiet"], "it has filled its share, so it wants more"


def test_of_two_that_are_full_the_one_used_more_often_gets_more() -> None:
    found = shared(1024, claim("often", 512, 512, 10.0), claim("seldom", 512, 512, 100.0))
    assert found["often"] > 800 and found["seldom"] >= 64
    assert sum(found.values()) >= 1022


def test_too_small_a_budget_is_shared_by_what_each_may_have() -> None:
    assert shared(60, claim("a", 0, None, 1, most=640), claim("b", 0, None, 1, most=1280)) == {"a": 20, "b": 40}

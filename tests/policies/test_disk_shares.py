"""One quota of bytes on disk over the stores of several models."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.disk_shares import DiskClaim, disk_shares

CLAIMS = st.lists(
    st.builds(
        DiskClaim,
        st.just(""),
        st.integers(0, 1 << 62),
        st.integers(0, 1 << 40),
        st.none() | st.integers(0, 1 << 40),
        st.booleans(),
    ),
    max_size=8,
)


def there(name: str, used: int, share: int | None = None, most: int = 1000) -> DiskClaim:
    return DiskClaim(name, most, used, share, there=True)


def away(name: str, used: int, most: int = 1000) -> DiskClaim:
    return DiskClaim(name, most, used, None, there=False)


@given(CLAIMS, st.integers(0, 1 << 42))
def test_the_sum_fits_but_for_what_is_held_and_nobody_loses_of_its_part(claims: list[DiskClaim], total: int) -> None:
    named = [replace(each, name=str(i)) for i, each in enumerate(claims)]
    found = disk_shares(total, named)
    assert set(found) == {each.name for each in named if each.there}
    held = sum(each.used for each in named if not each.there)
    together = sum(min(each.most, total) for each in named)
    for each in named:
        if each.there:
            part = min(each.most, total) if together <= total else min(each.most, total) * total // together
            assert min(each.used, part) <= found[each.name] <= max(each.most, min(each.used, part))
    if held + sum(found.values()) > total:
        assert all(found[each.name] <= each.used for each in named if each.there), "nobody grows meanwhile"
    open_ = [each for each in named if each.there and found[each.name] < each.most]
    if open_ and held + sum(found.values()) <= total:
        left = total - held - sum(found.values())
        assert left <= 2 * len(named) + 2 + (total >> 40), "nothing is left while somebody could have it"


def test_one_model_alone_gets_all_that_it_may_have() -> None:
    assert disk_shares(5000, [there("a", 10)]) == {"a": 1000}
    assert disk_shares(600, [there("a", 10)]) == {"a": 600}
    assert disk_shares(600, []) == {}


def test_what_one_does_not_use_is_borrowed_and_given_back() -> None:
    found = disk_shares(1000, [there("quiet", 100), there("full", 500, share=500)])
    assert found["full"] > 800 and found["quiet"] >= 100
    asked = disk_shares(1000, [there("quiet", found["quiet"], found["quiet"]), there("full", 850, found["full"])])
    assert 490 <= asked["quiet"] <= 500 <= asked["full"], "both want more: each has its part"


def test_who_is_used_more_often_gets_no_more() -> None:
    both = [there("a", 500, 500), there("b", 500, 500)]
    assert disk_shares(1000, both) == {"a": 500, "b": 500} == disk_shares(1000, both[::-1])


def test_parts_go_by_what_each_may_have() -> None:
    both = [there("small", 100, 100, most=200), there("large", 300, 300, most=600)]
    assert disk_shares(640, both) == {"small": 160, "large": 480}
    endless = [there("a", 320, 320, most=1 << 62), there("b", 320, 320, most=640)]
    assert disk_shares(640, endless) == {"a": 320, "b": 320}, "more than there is counts as all of it"


def test_what_those_that_are_away_hold_is_not_anothers() -> None:
    assert disk_shares(1000, [away("away", 700), there("here", 0)]) == {"here": 300}
    assert disk_shares(1000, [away("away", 990), there("here", 400, 400)]) == {"here": 400}, "of its part it loses none"
    assert disk_shares(1000, [away("away", 990), there("here", 700, 700)]) == {"here": 500}, "but what it has borrowed"


def test_a_store_that_holds_more_than_the_quota_gives_back_as_soon_as_it_is_in_memory() -> None:
    assert disk_shares(1000, [there("a", 3000, None, most=5000)]) == {"a": 1000}

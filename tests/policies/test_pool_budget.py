"""The POOL's budget under series of readings: it shrinks at once, grows back slowly, and does not oscillate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.pool_budget import MemoryReading, PoolBudget

MIB = 1 << 20
CALM = MemoryReading(0.0)


def turns(budgets: Iterable[int]) -> int:
    """How often a series changes its direction."""
    values = list(budgets)
    steps = [b > a for a, b in pairwise(values) if a != b]
    return sum(a != b for a, b in pairwise(steps))


def live(budget: PoolBudget, seconds: int, read: Callable[[int, int], MemoryReading]) -> list[int]:
    """The budget every two seconds; the POOL is always full. ``read(second, bytes in the POOL)``."""
    found = []
    for t in range(0, seconds, 2):
        found.append(budget.on_reading(read(t, budget.nbytes), budget.nbytes, float(t)))
    return found


def test_a_stall_takes_a_quarter_of_what_the_pool_holds_at_once_and_calm_gives_it_back_slowly() -> None:
    budget = PoolBudget(160 * MIB)
    assert budget.on_reading(MemoryReading(0.3), 100 * MIB, 0.0) == 75 * MIB
    assert budget.why == "pressure"
    assert budget.on_reading(CALM, 75 * MIB, 20.0) == 75 * MIB
    assert budget.on_reading(MemoryReading(0.05), 75 * MIB, 40.0) == 75 * MIB, "less stalled is not calm"
    grown = [budget.on_reading(CALM, 75 * MIB, 42.0 + t) for t in range(0, 200, 2)]
    assert grown[0] == 85 * MIB and grown[1] == 85 * MIB and grown[5] == 95 * MIB
    assert grown[-1] == 160 * MIB and budget.why == "configured" and turns(grown) == 0


def test_stalls_that_go_on_take_it_down_to_a_sixteenth_and_no_further() -> None:
    budget = PoolBudget(160 * MIB)
    found = live(budget, 60, lambda t, used: MemoryReading(0.5))
    assert found[0] == 120 * MIB and found[-1] == 10 * MIB and turns(found) == 0


def test_a_limit_gets_what_it_misses_and_no_more() -> None:
    budget = PoolBudget(160 * MIB)
    reading = MemoryReading(None, 512 * MIB, 12 * MIB, "cgroup")  # 20 MiB short of a sixteenth
    assert budget.on_reading(reading, 100 * MIB, 0.0) == 80 * MIB
    assert budget.why == "cgroup"


def test_a_pool_that_others_leave_less_room_settles_instead_of_oscillating() -> None:
    """A container of 512 MiB, where another process takes 300 of them after a minute and keeps them."""
    budget = PoolBudget(160 * MIB)

    def read(t: int, used: int) -> MemoryReading:
        others = 300 * MIB if t >= 60 else 100 * MIB
        return MemoryReading(0.0, 512 * MIB, max(0, 512 * MIB - others - used - 50 * MIB), "cgroup")

    found = live(budget, 3600, read)
    assert found[30] < found[0] == 160 * MIB
    assert turns(found) <= 1 and len(set(found[40:])) == 1
    assert found[-1] + 350 * MIB + 32 * MIB <= 512 * MIB


def test_a_machine_that_stalls_whenever_the_pool_is_large_is_tried_ever_more_rarely() -> None:
    """PSI does not say how much is too much: each failed growth doubles the wait, up to an hour."""
    budget = PoolBudget(160 * MIB)
    found = live(budget, 24 * 3600, lambda t, used: MemoryReading(0.4 if used > 100 * MIB else 0.0))
    dips = [2 * i for i, (a, b) in enumerate(pairwise(found)) if b < a]
    waits = [b - a for a, b in pairwise(dips)]
    assert waits[-1] >= 3600 and len(dips) < 40
    assert max(found[len(found) // 2 :]) <= 110 * MIB


def test_an_operators_word_holds_at_once() -> None:
    budget = PoolBudget(160 * MIB)
    budget.on_reading(MemoryReading(0.9), 160 * MIB, 0.0)
    assert budget.configure(300 * MIB) == 300 * MIB == budget.nbytes
    assert budget.why == "configured"


# A burst, as shares of each two seconds.
BURST = (0, 0, 0.01, 0.02, 0.13, 0.41, 0.22, 0.12, 0.08, 0.03, 0.04, 0.11, 0.02, 0.01, 0.005, 0, 0, 0, 0, 0)


def test_a_burst_of_stalls_shrinks_five_times_and_comes_back() -> None:
    budget = PoolBudget(256 * MIB)
    found = live(budget, 600, lambda t, used: MemoryReading(BURST[t // 2] if t // 2 < len(BURST) else 0.0))
    assert found[3] == 256 * MIB and found[4] == 192 * MIB
    assert min(found) == int(256 * MIB * 0.75**5)
    assert found[-1] == 256 * MIB and turns(found) == 1


READINGS = st.builds(
    MemoryReading,
    st.none() | st.floats(0, 1),
    st.none() | st.integers(16 * MIB, 4096 * MIB),
    st.none() | st.integers(0, 4096 * MIB),
    st.just("cgroup"),
)


@given(st.lists(st.tuples(READINGS, st.integers(0, 256 * MIB), st.floats(0.1, 1000)), max_size=60))
def test_it_stays_between_its_floor_and_what_was_configured_and_never_leaps_up(
    series: list[tuple[MemoryReading, int, float]],
) -> None:
    budget, now = PoolBudget(160 * MIB), 0.0
    for reading, used, passed in series:
        before, now = budget.nbytes, now + passed
        after = budget.on_reading(reading, used, now)
        assert 10 * MIB <= after <= 160 * MIB
        assert after - before <= 10 * MIB


def test_another_share_holds_at_once_but_not_against_the_machine() -> None:
    budget = PoolBudget(1000 * MIB)
    assert budget.entitle(400 * MIB) == budget.configured == 400 * MIB
    assert budget.entitle(800 * MIB) == 800 * MIB
    budget.on_reading(MemoryReading(stalled=0.3), used=800 * MIB, now=0.0)
    assert budget.nbytes == 600 * MIB and budget.why == "pressure"
    assert budget.entitle(900 * MIB) == 600 * MIB, "the machine has none to give"
    assert budget.entitle(500 * MIB) == 500 * MIB and budget.why == "configured"

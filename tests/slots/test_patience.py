"""When a side stays awake for the other's next bytes, and when it leaves its CPU to others."""

from __future__ import annotations

from llmaas.slots.awake import STAY_S, Patience


def test_it_stays_for_who_answers_quickly_and_not_for_others() -> None:
    patience = Patience(lambda: 0)
    assert patience.came(STAY_S)
    assert not patience.came(1.0)
    assert patience.came(STAY_S)


def test_after_waiting_in_vain_it_sleeps_the_next_1_3_7_up_to_63_times() -> None:
    patience = Patience(lambda: 0)
    slept = []
    for _ in range(8):
        n = 0
        while not patience.came(0.0):
            n += 1
        slept.append(n)
        patience.fell_asleep()
    assert slept == [0, 1, 3, 7, 15, 31, 63, 63]
    while not patience.came(0.0):
        pass
    assert all(patience.came(0.0) for _ in range(10)), "it was not in vain"
    patience.fell_asleep()
    assert [patience.came(0.0) for _ in range(2)] == [False, True]


def test_where_others_want_its_cpu_it_does_not_stay_for_long() -> None:
    switches = iter(range(100))
    patience = Patience(lambda: next(switches))
    stayed = [patience.came(0.0) for _ in range(2000)]
    assert stayed[:15] == [True] * 15
    assert sum(stayed) < 100

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.errors import PolicyBug
from llmaas.kvchunks.ledger import TRANSITIONS, Copy, Ledger, Move
from llmaas.records import ChunkKey, Tier

A, B = ChunkKey(b"a" * 16), ChunkKey(b"b" * 16)


def ledger_with(*keys: ChunkKey, budget: int = 100) -> Ledger:
    ledger = Ledger(budget)
    for key in keys:
        ledger.ref(key)
    return ledger


def test_a_copy_is_seen_only_when_it_is_whole() -> None:
    ledger = ledger_with(A)
    assert ledger.tier(A) is Tier.NONE
    ledger.begin_pool(A, 60)
    assert ledger.tier(A) is Tier.NONE and ledger.pool_used == 60
    ledger.arrive_pool(A, 50)
    assert ledger.tier(A) is Tier.POOL and ledger.pool_used == 50
    ledger.begin_disk(A)
    assert ledger.tier(A) is Tier.POOL
    ledger.arrive_disk(A, 50)
    ledger.drop_pool(A)
    assert ledger.tier(A) is Tier.DISK and ledger.pool_used == 0 and ledger.disk_used == 50


def test_every_move_that_is_not_in_the_table_raises_and_changes_nothing() -> None:
    def put_into(state: Copy) -> Ledger:
        ledger = ledger_with(A)
        if state is not Copy.ABSENT:
            ledger.begin_pool(A, 10)
        if state is Copy.PRESENT:
            ledger.arrive_pool(A, 10)
        return ledger

    for state, move in itertools.product(Copy, Move):
        ledger = put_into(state)
        do = {
            Move.BEGIN: lambda x: x.begin_pool(A, 10),
            Move.ARRIVE: lambda x: x.arrive_pool(A, 10),
            Move.FAIL: lambda x: x.fail_pool(A),
            Move.DROP: lambda x: x.drop_pool(A),
        }[move]
        used = ledger.pool_used
        if (state, move) in TRANSITIONS:
            do(ledger)
            assert ledger.chunk(A).pool is TRANSITIONS[state, move]
        else:
            with pytest.raises(PolicyBug):
                do(ledger)
            assert ledger.chunk(A).pool is state and ledger.pool_used == used
        assert ledger.check() == []


def test_the_pool_budget_cannot_be_exceeded() -> None:
    ledger = ledger_with(A, B)
    ledger.begin_pool(A, 80)
    with pytest.raises(PolicyBug):
        ledger.begin_pool(B, 21)
    assert ledger.room(21) == 1 and ledger.room(20) == 0
    with pytest.raises(PolicyBug):
        ledger.arrive_pool(A, 81)


def test_a_bad_eviction_plan_changes_nothing() -> None:
    ledger = ledger_with(A, B)
    for key in (A, B):
        ledger.begin_pool(key, 10)
        ledger.arrive_pool(key, 10)
    ledger.pin(B)
    for plan in ([A, B], [A, A], [A, ChunkKey(b"?" * 16)]):
        with pytest.raises(PolicyBug):
            ledger.evict(plan, lambda key: 10)
        assert ledger.tier(A) is Tier.POOL
    ledger.evict([A], lambda key: 10)
    assert ledger.tier(A) is Tier.NONE


def test_garbage_is_swept_only_at_rest() -> None:
    ledger = ledger_with(A)
    ledger.begin_pool(A, 10)
    ledger.unref(A)
    assert ledger.sweep(A) == (False, False) and A in ledger
    ledger.arrive_pool(A, 10)
    ledger.pin(A)
    assert ledger.sweep(A) == (False, False)
    ledger.unpin(A)
    assert ledger.sweep(A) == (True, False) and A not in ledger
    assert ledger.pool_used == 0 and ledger.sweep(A) == (False, False)


def test_references_and_pins_cannot_go_below_zero() -> None:
    ledger = ledger_with(A)
    ledger.unref(A)
    for move in (ledger.unref, ledger.unpin):
        with pytest.raises(PolicyBug):
            move(A)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("rupPbafdBAFDs")), max_size=80))
def test_whatever_is_asked_the_books_balance(moves: list[tuple[int, str]]) -> None:
    ledger = Ledger(40)
    for i, move in moves:
        key = ChunkKey(bytes([i]) * 16)
        do = {
            "r": lambda k: ledger.ref(k),
            "u": lambda k: ledger.unref(k),
            "p": lambda k: ledger.pin(k),
            "P": lambda k: ledger.unpin(k),
            "b": lambda k: ledger.begin_pool(k, 10 + k[0]),
            "a": lambda k: ledger.arrive_pool(k, 10),
            "f": lambda k: ledger.fail_pool(k),
            "d": lambda k: ledger.drop_pool(k),
            "B": lambda k: ledger.begin_disk(k),
            "A": lambda k: ledger.arrive_disk(k, 10),
            "F": lambda k: ledger.fail_disk(k),
            "D": lambda k: ledger.drop_disk(k),
            "s": lambda k: ledger.sweep(k),
        }[move]
        with contextlib.suppress(PolicyBug):
            do(key)
        assert 0 <= ledger.pool_used <= 40
        problems = [p for p in ledger.check() if "garbage" not in p]
        assert problems == []

"""The rings of a slot: bytes come out as they went in, and nonsense in the shared words is refused."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.slots.end import Broken, Ready
from llmaas.slots.layout import (
    CLIENT_SLEEPS,
    REPLIES_TAKEN,
    REQUESTS_TAKEN,
    REQUESTS_WRITTEN,
    SERVICE_SLEEPS,
    STATE,
)
from tests.slots.support import WORDS, slot_pair

READABLE, ROOM, ENDED = Ready.READABLE.value, Ready.ROOM.value, Ready.ENDED.value
RING = 4096


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["write", "read"]), st.booleans(), st.integers(0, 2 * RING)), min_size=1, max_size=60
    ),
    begin=st.sampled_from([0, 1, RING - 1, 2**31 - 7, 2**32 - 3]),
)
def test_what_is_written_is_read_whatever_the_sizes_and_wrap_around(
    steps: list[tuple[str, bool, int]], begin: int
) -> None:
    with slot_pair(RING) as pair:
        for end in (pair.service, pair.client):
            end.begin_at(begin)
        fills = {True: bytearray(), False: bytearray()}
        rnd = random.Random(begin)
        for what, by_client, n in steps:
            here, there = (pair.client, pair.service) if by_client else (pair.service, pair.client)
            if what == "write":
                data = rnd.randbytes(n)
                written = here.write(data)
                assert written == min(n, RING - len(fills[by_client]))
                fills[by_client] += data[:written]
            else:
                expected = fills[by_client][:n]
                assert bytes(there.read(n)) == expected
                del fills[by_client][: len(expected)]
            assert there.ready(READABLE) == (READABLE if fills[by_client] else 0)
            assert here.ready(ROOM) == (ROOM if len(fills[by_client]) <= RING // 2 else 0)


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 2**32 - 1)), max_size=8),
    near=st.lists(st.tuples(st.sampled_from(WORDS), st.integers(-2, 2)), max_size=4),
    calls=st.lists(st.tuples(st.sampled_from(["read", "write", "ready", "sleep"]), st.booleans()), max_size=12),
)
def test_nonsense_in_any_word_is_refused_or_harmless(
    words: list[tuple[int, int]], near: list[tuple[int, int]], calls: list[tuple[str, bool]]
) -> None:
    with slot_pair(RING) as pair:
        for offset, value in words:
            pair.set_word(offset, value)
        for offset, more in near:
            pair.set_word(offset, RING + more)
        for what, service in calls:
            end = pair.service if service else pair.client
            try:
                match what:
                    case "read":
                        assert len(end.read()) <= RING
                    case "write":
                        assert end.write(b"x" * 5000) <= RING
                    case "ready":
                        assert 0 <= end.ready(READABLE | ROOM) <= 7
                    case "sleep":
                        assert 0 <= end.sleep(READABLE) <= 7
            except Broken:
                pass


def test_a_client_that_says_it_wrote_more_than_the_ring_holds_is_broken() -> None:
    for word, impossible in ((REQUESTS_WRITTEN, RING + 1), (REQUESTS_WRITTEN, -1), (REPLIES_TAKEN, 1)):
        with slot_pair(RING) as pair:
            pair.set_word(word, impossible)
            with pytest.raises(Broken, match="cannot have"):
                pair.service.ready(READABLE)
            with pytest.raises(Broken):
                pair.service.read() if word == REQUESTS_WRITTEN else pair.service.write(b"x")


def test_own_positions_are_never_taken_from_the_slot() -> None:
    with slot_pair(RING) as pair:
        pair.client.write(b"first")
        assert bytes(pair.service.read(2)) == b"fi"
        pair.set_word(REQUESTS_TAKEN, 0)  # the service's own word
        assert bytes(pair.service.read()) == b"rst"
        assert pair.word(REQUESTS_TAKEN) == 5


def test_who_sleeps_is_rung_once_and_only_for_what_it_waits_for() -> None:
    with slot_pair(RING) as pair:
        assert pair.client.write(b"x") == 1 and not pair.client.take_bell(), "the service is awake"
        assert pair.service.sleep(READABLE) == READABLE, "there is something: it stays awake"
        pair.service.read()
        assert pair.service.sleep(READABLE) == 0
        pair.client.write(b"y")
        assert pair.client.take_bell() and not pair.client.take_bell()
        pair.client.write(b"z")
        assert not pair.client.take_bell(), "it has been rung"
        pair.service.read()
        assert pair.service.sleep(0) == 0
        pair.client.write(b"y")
        assert not pair.client.take_bell(), "it does not want to read"


def test_room_is_told_of_when_half_of_the_ring_is_free() -> None:
    with slot_pair(RING) as pair:
        assert pair.service.write(b"x" * 2 * RING) == RING
        assert pair.service.sleep(ROOM) == 0
        pair.client.read(RING // 2 - 1)
        assert not pair.client.take_bell()
        pair.client.read(1)
        assert pair.client.take_bell()
        assert pair.service.write(b"x" * RING) == RING // 2


def test_the_end_is_told_after_what_was_written_before_it() -> None:
    with slot_pair(RING) as pair:
        pair.service.write(b"last words")
        pair.service.finish()
        assert pair.client.ready(READABLE) == READABLE
        assert bytes(pair.client.read()) == b"last words"
        assert pair.client.ready(READABLE) == pair.client.wait(READABLE, spin_s=0, timeout_s=5) == ENDED
        pair.client.close()
        with pytest.raises(Broken):
            pair.client.read()


@pytest.mark.parametrize("spin_s", [0.0, 1e-3])
def test_a_wait_ends_when_something_comes_and_when_the_time_is_up(spin_s: float) -> None:
    with slot_pair(RING) as pair:
        assert pair.client.wait(READABLE, spin_s=spin_s, timeout_s=0.01) == 0
        late = threading.Timer(0.02, lambda: pair.service.write(b"x"))
        late.start()
        assert pair.client.wait(READABLE, spin_s=spin_s, timeout_s=60) == READABLE
        late.join()
        assert pair.word(CLIENT_SLEEPS) == 0 == pair.word(SERVICE_SLEEPS)
        pair.set_word(STATE, 99)
        assert pair.service.ready(READABLE) == ENDED

"""Two sides on two kernels, where no futex wakes anybody: a bell does, or a look after a nap."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmaas.slots.end import Broken, Ready, SlotEnd
from llmaas.slots.layout import CLIENT_SLEEPS, REPLIES_WRITTEN
from llmaas.slots.memory import SlotMemory, open_slot, use_slot
from tests.slots.support import SOON_S
from tests.support.far_slots import lent

READABLE = Ready.READABLE.value


@contextmanager
def far_pair() -> Iterator[tuple[SlotEnd, SlotEnd, SlotMemory]]:
    """The service's end, the client's, and the memory."""
    with lent(1, 1 << 14) as (fds, folder):
        layout, mine = use_slot(folder / "0", 1, os.getuid())
        header, its = open_slot(fds[0])
        assert header.far and header.layout == layout and its.nbytes == 1 << 14
        third = SlotMemory(fds[0], layout.nbytes)
        ends = SlotEnd(mine, layout, service=True, far=True), SlotEnd(its, header.layout, service=False, far=True)
        yield *ends, third
        for end in ends:
            end.close()
        third.close()


def test_a_side_that_naps_finds_what_came_without_a_bell() -> None:
    with far_pair() as (service, client, memory):
        late = threading.Timer(0.02, lambda: service.write(b"x"))
        late.start()
        assert client.doze(READABLE, spin_s=1e-4, doze_s=SOON_S) == READABLE
        late.join()
        assert memory.load(CLIENT_SLEEPS, 4) == bytes(4) and not service.take_bell(), "it never said that it slept"


@pytest.mark.parametrize("spin_s", [0.0, 1e-3])
def test_naps_end_when_the_time_is_up_and_take_no_cpu(spin_s: float) -> None:
    with far_pair() as (_, client, _):
        cpu = time.thread_time()
        assert client.doze(READABLE, spin_s=spin_s, doze_s=0.2) == 0
        assert time.thread_time() - cpu < 0.1


def test_who_sleeps_is_rung_by_a_bell_whatever_it_says_of_futexes() -> None:
    with far_pair() as (service, client, _):
        assert client.sleep(READABLE) == 0
        service.write(b"x")
        assert service.take_bell()
        assert client.sleep(READABLE) == READABLE


def test_positions_that_cannot_be_end_a_nap() -> None:
    with far_pair() as (_, client, memory):
        memory.store(REPLIES_WRITTEN, (5000).to_bytes(4, sys.byteorder))
        with pytest.raises(Broken):
            client.doze(READABLE, spin_s=0, doze_s=1)

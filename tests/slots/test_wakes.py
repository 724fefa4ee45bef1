"""No wake-up is lost: round trips of which every one waits for a wake-up that nobody repeats.

Both ways of being woken are used: the service by a byte on the socket, the clients by the futex. A client that is not
woken fails the test; the service would sleep for ever.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmaas.slots.grants import SlotSettings
from tests.slots.support import slot_pair, wait_readable
from tests.support.scripted import serving_in_a_thread

ROOT = Path(__file__).parents[2]
CLIENTS = """
import sys, threading
from pathlib import Path
from tests.slots.support import RawSlot

def run(slot, n):
    for i in range(2, n + 2):
        slot.send({"id": i, "op": "ping"})
        assert slot.frame()["id"] == i
    done.append(slot)

done = []
slots = [RawSlot(Path(sys.argv[1]), sys.argv[2]) for _ in range(8)]
threads = [threading.Thread(target=run, args=(slot, int(sys.argv[3]))) for slot in slots]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(len(done) != len(slots))
"""


def busy_slots(path: Path, each: int, processes: int) -> None:
    """Eight clients in each process, all at once; each makes so many round trips. They are one app, for which the
    event loop does not rest."""
    with serving_in_a_thread(path, slots=SlotSettings(128, 16 << 10)):
        started = [
            subprocess.Popen([sys.executable, "-c", CLIENTS, str(path), "busy", str(each)], cwd=ROOT)
            for _ in range(processes)
        ]
        assert [process.wait() for process in started] == [0] * processes


def test_no_wake_up_is_lost_between_busy_clients_and_the_service(path: Path) -> None:
    busy_slots(path, each=300, processes=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_wake_up_is_lost_in_a_million_round_trips_of_64_slots(path: Path) -> None:
    busy_slots(path, each=15_625, processes=8)


def echo(n: int, seed: int) -> None:
    """Two threads that sleep on the futex, with pauses that move them against each other."""
    rnd, served = random.Random(seed), list[int]()
    pauses = [rnd.choice((0, 0, 0, 1e-6, 5e-6, 2e-5)) for _ in range(1000)]
    with slot_pair(4096) as pair:

        def serve() -> None:
            for i in range(n):
                wait_readable(pair.service)
                pair.service.read()
                pair.service.write(b"y")
                served.append(i)

        thread = threading.Thread(target=serve)
        thread.start()
        for i in range(n):
            pair.client.write(b"x")
            late = time.perf_counter() + pauses[i % 1000]
            while time.perf_counter() < late:
                pass
            wait_readable(pair.client)
            pair.client.read()
        thread.join()
    assert len(served) == n


def test_no_wake_up_is_lost_on_the_futex() -> None:
    echo(10_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_wake_up_is_lost_on_the_futex_in_a_million_round_trips() -> None:
    echo(1_000_000, seed=2)

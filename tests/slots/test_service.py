"""The service's side of slots: who gets one, what a hostile client can do, and that none is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.api.limits import Limits
from llmaas.api.server import Server
from llmaas.errors import BadRequest, Busy, MachineError
from llmaas.records import Message
from llmaas.slots.end import Broken
from llmaas.slots.grants import SlotSettings
from llmaas.slots.layout import HEADER, REPLIES_TAKEN, REQUESTS_WRITTEN, SERVICE_SLEEPS, STATE
from llmaas.slots.memory import open_slot
from tests.slots.support import SOON_S, WORDS, RawSlot
from tests.support.daemon import Peer
from tests.support.loop import on_a_loop
from tests.support.scripted import ScriptedBackend, serving, serving_in_a_thread

SMALL = SlotSettings(4, 16 << 10)


async def in_use(_: ScriptedBackend, server: Server) -> int:
    return server.slots.grants.in_use


async def until_free(_: ScriptedBackend, server: Server) -> None:
    late = time.monotonic() + SOON_S
    while server.slots.grants.in_use:
        assert time.monotonic() < late, "a slot is stuck"
        await asyncio.sleep(0.01)


def test_a_daemon_without_slots_says_so_and_a_wrong_transport_is_refused(path: Path) -> None:
    with serving_in_a_thread(path):
        with pytest.raises(BadRequest, match="no slots") as caught:
            Client(path, app="mail", transport="slots")
        assert "socket" in caught.value.hint
        with pytest.raises(BadRequest, match="transport"):
            Client(path, app="mail", transport="pigeon")


@on_a_loop
async def test_async_clients_are_told_the_same(path: Path) -> None:
    async with serving(path) as (_, server):
        with pytest.raises(BadRequest, match="no slots"):
            await AsyncClient.connect(path, app="mail", transport="slots")
        with pytest.raises(BadRequest, match="transport"):
            await AsyncClient.connect(path, app="mail", transport="pigeon")
        while server.connections:
            await asyncio.sleep(0.01)


def test_slots_are_bounded_together_and_for_each_app_and_come_back(path: Path) -> None:
    with serving_in_a_thread(path, slots=SlotSettings(3, 16 << 10)) as there:
        mail = Client(path, app="mail", transport="slots")
        with pytest.raises(Busy, match="/mail has 1"):
            Client(path, app="mail", transport="slots")
        others = [Client(path, app=f"app{i}", transport="slots") for i in range(2)]
        with pytest.raises(Busy, match="all 3"):
            Client(path, app="late", transport="slots")
        with Client(path, app="late") as by_socket:
            by_socket.ping()
        for client in (mail, *others):
            client.ping()
            client.close()
        there(until_free)
        with Client(path, app="mail", transport="slots") as again:
            again.ping()


def test_a_slot_is_given_at_rest_only_and_the_connection_goes_on(path: Path) -> None:
    with serving_in_a_thread(path, slots=SMALL) as there, Peer(path) as peer:
        peer.hello()
        peer.send({"id": 1, "op": "create", "name": "inbox"})
        peer.receive()
        peer.send({"id": 2, "op": "generate", "context": "inbox", "prompt": "wait"})
        assert peer.receive()["type"] == "piece"
        peer.send({"id": 3, "op": "slot"})
        assert "at rest" in peer.receive()["message"]
        peer.send({"id": 4, "op": "cancel", "request": 2})
        assert {peer.receive()["id"], peer.receive()["id"]} == {2, 4}
        peer.send({"id": 5, "op": "slot", "version": 9})
        assert "version 1" in peer.receive()["message"]
        assert there(in_use) == 0
        peer.send({"id": 6, "op": "ping"})
        assert peer.receive()["type"] == "done"
        raw = RawSlot(path)
        raw.send({"id": 2, "op": "slot"})
        assert "already" in raw.frame()["message"]
        raw.send({"id": 3, "op": "ping"})
        assert raw.frame()["type"] == "done"
        raw.close()


def test_the_client_cannot_cut_its_slot_and_has_no_others(path: Path) -> None:
    with serving_in_a_thread(path, slots=SMALL) as there:
        one, two = RawSlot(path, "one"), RawSlot(path, "two")
        assert (one.header.generation, two.header.generation) == (1, 2)
        assert one.header.owner == os.getuid()
        for size in (0, HEADER, 1 << 20):
            with pytest.raises(OSError) as caught:
                os.truncate(one.fd, size)
            assert caught.value.errno == errno.EPERM
        assert os.fstat(one.fd).st_ino != os.fstat(two.fd).st_ino
        one.send({"id": 2, "op": "ping"})
        assert one.frame() == {"id": 2, "type": "done", "result": None}
        one.close()
        two.close()
        there(until_free)


def test_memory_that_is_no_slot_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 8192)
    with file.open("r+b") as opened, pytest.raises(MachineError, match="no slot"):
        open_slot(opened.fileno())


@pytest.mark.parametrize("word", [REQUESTS_WRITTEN, REPLIES_TAKEN, STATE])
def test_impossible_words_end_that_connection_and_no_other(path: Path, word: int) -> None:
    with serving_in_a_thread(path, slots=SMALL) as there, Client(path, app="good", transport="slots") as good:
        bad = RawSlot(path)
        bad.set_word(word, 0x7FFFFFFF)
        bad.ring()
        assert bad.is_dropped()
        good.ping()
        bad.close()
        there(in_use)
        good.close()
        there(until_free)


def test_random_words_and_bytes_harm_nobody_else(path: Path) -> None:
    rnd = random.Random(5)
    slots = SlotSettings(64, 16 << 10)
    with serving_in_a_thread(path, slots=slots) as there, Client(path, app="good", transport="slots") as good:
        for _ in range(40):
            bad = RawSlot(path)
            for _ in range(rnd.randrange(1, 6)):
                match rnd.randrange(4):
                    case 0:
                        bad.set_word(rnd.choice(WORDS), rnd.choice([0, 1, 2, 8, 9, rnd.getrandbits(32)]))
                    case 1:
                        layout = bad.header.layout
                        bad.memory.store(rnd.randrange(layout.requests, layout.nbytes - 64), rnd.randbytes(64))
                    case 2:
                        with contextlib.suppress(Broken):  # by the words that it has written itself
                            bad.end.write(rnd.randbytes(rnd.randrange(2000)))
                    case _:
                        bad.memory.store(0, rnd.randbytes(24))
                try:
                    bad.ring(rnd.randrange(1, 30))
                except OSError:
                    break  # the service has ended it
            good.ping()
            bad.close()
        good.close()
        there(until_free)


def test_frames_are_checked_in_the_copy_and_refused_as_on_a_socket(path: Path) -> None:
    with serving_in_a_thread(path, slots=SMALL) as there:
        bad = RawSlot(path)
        bad.end.write(b"\xff\xff\xff\xff")
        bad.ring()
        reply = bad.frame()
        assert (reply["id"], reply["code"]) == (None, "frame_too_large")
        assert bad.end.wait(1, spin_s=0, timeout_s=SOON_S) == 4
        assert bad.is_dropped()
        bad.close()
        there(until_free)


def test_bells_for_nothing_are_not_heard_for_a_while_and_requests_are(path: Path) -> None:
    with serving_in_a_thread(path, slots=SMALL) as there, Client(path, app="good", transport="slots") as good:
        bad = RawSlot(path)
        for _ in range(200):
            bad.ring(50)
            good.ping()
        bad.send({"id": 2, "op": "ping"})
        bad.ring()
        assert bad.frame()["id"] == 2
        bad.set_word(SERVICE_SLEEPS, 0)  # nobody wakes it now: this client waits for itself
        bad.close()
        good.close()
        there(until_free)


def test_a_client_that_does_not_read_is_dropped(path: Path) -> None:
    limits = Limits(max_frame=1 << 16, write_buffer=1 << 17, write_s=0.3)
    with serving_in_a_thread(path, slots=SMALL, limits=limits) as there:
        bad = RawSlot(path)
        bad.send({"id": 1, "op": "create", "name": "inbox", "system": "x" * 4000})
        assert bad.frame()["type"] == "done"
        with contextlib.suppress(BrokenPipeError):  # on a busy machine it is dropped before all was sent
            for i in range(2, 60):
                bad.send({"id": i, "op": "show", "context": "inbox"})
                time.sleep(0.005)
        assert bad.is_dropped()
        bad.close()
        there(until_free)


def test_large_frames_pass_through_small_rings(path: Path) -> None:
    with (
        serving_in_a_thread(path, slots=SlotSettings(2, 8 << 10)) as there,
        Client(path, app="mail", transport="slots") as client,
    ):
        text = "".join(map(str, range(100_000)))
        client.create(name="big", system=text)
        assert client.show("big").messages == (Message("system", text),)
        client.close()
        there(until_free)


def test_what_a_client_leaves_is_not_in_memory_any_more(path: Path) -> None:
    with serving_in_a_thread(path, slots=SMALL) as there:
        left = RawSlot(path)
        left.send({"id": 2, "op": "ping"})
        left.frame()
        left.sock.close()
        there(until_free)
        assert left.memory.load(0, left.memory.nbytes) == bytes(left.memory.nbytes)
        assert os.fstat(left.fd).st_blocks <= left.memory.nbytes // 512


CLIENT = """
import sys, threading, os
from llmaas.api.client import Client
client = Client(sys.argv[1], app="victim", transport="slots")
client.context("inbox")
print("ready", flush=True)
while True:
    client.ping()
    client.append("inbox", prompt="x" * 3000)
    list(client.generate("inbox", prompt="count 30"))
    client.show("inbox")
    client.truncate("inbox", n_messages=0)
"""


def kill_clients(path: Path, times: int, seed: int = 0) -> None:
    """Kill clients (SIGKILL) while they use a slot: another one works on, and no slot is left."""
    rnd = random.Random(seed)
    with serving_in_a_thread(path, slots=SMALL) as there:
        for _ in range(times):
            command = [sys.executable, "-c", CLIENT, str(path)]
            victim = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
            assert victim.stdout is not None and victim.stdout.readline() == b"ready\n"
            assert there(in_use) == 1
            time.sleep(rnd.uniform(0, 0.02))
            victim.kill()
            victim.wait()
            victim.stdout.close()
            there(until_free)
        with Client(path, app="victim", transport="slots") as after:
            after.ping()


def test_clients_that_are_killed_leave_no_slot(path: Path) -> None:
    kill_clients(path, 6)


@pytest.mark.slow
def test_many_clients_that_are_killed_leave_no_slot(path: Path) -> None:
    kill_clients(path, 300, seed=1)

"""The C client by slots says what it says by the socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmaas.api.hello import reply_frame
from llmaas.api.replies import done_frame
from llmaas.api.wire import encode
from llmaas.slots.grants import SlotSettings
from llmaas.slots.layout import REPLIES_WRITTEN, REQUESTS_TAKEN, SlotLayout
from llmaas.slots.memory import make_slot
from tests.slots.support import SOON_S
from tests.slots.test_service import until_free
from tests.support.drivers import BRIDGE, WARNINGS, build, needs
from tests.support.scripted import serving_in_a_thread

SOURCES = Path(__file__).with_name("client.c"), BRIDGE / "c" / "llmaas.c"
SLOTS_C = BRIDGE.parent / "llmaas" / "slots"
SAID = "0 1 2 3 4 5 6 7 8 \n6000 of 6000 bytes\ncancelled\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("c") / "client"
    build(needs("cc"), "-DLLMAAS_SLOTS", *WARNINGS, f"-I{BRIDGE / 'c'}", f"-I{SLOTS_C}", *SOURCES, "-o", built)
    return built


def run(program: Path, path: Path, transport: str) -> tuple[int, str]:
    found = subprocess.run([program, path, transport], capture_output=True, text=True, check=False, timeout=60)
    return found.returncode, found.stdout


@pytest.mark.parametrize("transport", ["socket", "slots"])
def test_it_works_by_both_transports(program: Path, path: Path, transport: str) -> None:
    with serving_in_a_thread(path, slots=SlotSettings(2, 8 << 10)) as there:
        assert run(program, path, transport) == (0, SAID)
        there(until_free)


def test_it_is_told_that_there_are_none(program: Path, path: Path) -> None:
    with serving_in_a_thread(path):
        assert run(program, path, "slots") == (1, "connect: bad_request: this daemon has no slots\n")
        assert run(program, path, "pigeon") == (1, "connect: bad_request: there is no transport pigeon\n")


def test_a_library_without_them_says_so(tmp_path: Path, path: Path) -> None:
    build(needs("cc"), *WARNINGS, f"-I{BRIDGE / 'c'}", *SOURCES, "-o", tmp_path / "client")
    with serving_in_a_thread(path, slots=SlotSettings(2)):
        code, said = run(tmp_path / "client", path, "slots")
        assert code == 1 and "compiled without slots" in said


def break_the_slot(path: Path, word: int) -> None:
    """As a daemon, greet a client, pass it a slot with a word that cannot be, and close the socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with listener.accept()[0] as sock:
            sock.settimeout(SOON_S)
            sock.recv(4096)
            sock.sendall(encode(reply_frame("x", {}, {})))
            sock.recv(4096)
            layout = SlotLayout(4096)
            fd, memory = make_slot(layout, 1, os.getuid())
            memory.store(word, (5000).to_bytes(4, sys.byteorder))
            result = {"version": 1, "nbytes": layout.nbytes, "generation": 1}
            socket.send_fds(sock, [encode(done_frame(0, result))], [fd])
            os.close(fd)
    memory.close()


@pytest.mark.parametrize("word", [REQUESTS_TAKEN, REPLIES_WRITTEN])
def test_a_slot_that_is_broken_ends_the_connection_and_is_not_tried_for_ever(
    program: Path, path: Path, word: int
) -> None:
    daemon = threading.Thread(target=break_the_slot, args=(path, word))
    daemon.start()
    while not path.exists():
        time.sleep(0.001)
    code, said = run(program, path, "slots")
    daemon.join()
    assert code == 1 and said.startswith("create: not_serving: the connection to the daemon"), said

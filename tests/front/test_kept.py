"""What becomes of connections whose process is killed, by what it had marked."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from llmaas.api.caller import Door
from llmaas.api.handed import ConnectionMark, ConnectionMarks, HandedConnection
from llmaas.front.kept import KeptConnections


@pytest.fixture
def kept() -> Iterator[KeptConnections]:
    found = KeptConnections()
    yield found
    found.end()


Make = Callable[[], tuple[HandedConnection, socket.socket]]


@pytest.fixture
def handed() -> Iterator[Make]:
    """Makes a connection, and its peer."""
    with contextlib.ExitStack() as stack:

        def make() -> tuple[HandedConnection, socket.socket]:
            ours, peer = (stack.enter_context(end) for end in socket.socketpair())
            return HandedConnection(Door.APPS, ours, b"hello", greet=True), peer

        yield make


def test_each_mark_has_its_end(kept: KeptConnections, handed: Make) -> None:
    made = [handed() for _ in range(6)]
    marks, gone = ConnectionMarks(kept.fd), list[int]()
    numbers = []
    for connection, _ in made:
        number, fd = kept.keep(connection)
        os.close(fd)
        assert number is not None
        numbers.append(number)
    looked = [ConnectionMark(marks, number, lambda: gone.append(1)) for number in numbers]
    looked[1].receiving()
    looked[2].receiving()
    looked[2].settle(all_sent=True, at_rest=True)
    looked[3].sending()
    looked[3].receiving()
    looked[3].settle(all_sent=False, at_rest=False)
    looked[4].sending()
    looked[4].settle(all_sent=True, at_rest=False)
    looked[5].receiving()
    looked[5].settle(all_sent=False, at_rest=False)  # what was not sent at once may be sent in parts
    left = kept.end()
    assert left.unseen == [made[0][0]] and left.at_rest == [made[2][0]]
    assert left.in_use == [made[1][0], made[4][0]]
    for i in (3, 5):
        assert made[i][1].recv(1) == b"", "those that may be within a frame are closed"


def test_a_number_is_used_again_as_new_and_there_are_only_so_many(kept: KeptConnections, handed: Make) -> None:
    (first, peer), marks = handed(), ConnectionMarks(kept.fd)
    number, fd = kept.keep(first)
    os.close(fd)
    assert number is not None
    ConnectionMark(marks, number, lambda: None).sending()
    kept.forget(number)
    assert peer.recv(1) == b""
    kept.forget(number)  # once more does nothing
    second, _ = handed()
    again, fd = kept.keep(second)
    os.close(fd)
    assert again == number and kept.end().unseen == [second]


def test_beyond_the_marks_a_connection_is_handed_on_without_a_copy(handed: Make) -> None:
    kept = KeptConnections(most=0)
    first, peer = handed()
    number, fd = kept.keep(first)
    assert number is None and len(kept) == 0 and first.sock.fileno() == -1
    os.close(fd)
    assert peer.recv(1) == b""


def test_the_peer_is_told_though_another_process_has_a_copy(kept: KeptConnections, handed: Make) -> None:
    connection, peer = handed()
    number, fd = kept.keep(connection)
    assert number is not None
    gone: list[int] = []
    with socket.socket(fileno=fd) as theirs:
        theirs.send(b"last")
        ConnectionMark(ConnectionMarks(kept.fd), number, lambda: gone.append(number)).over(theirs)
    assert peer.recv(10) == b"last" and peer.recv(10) == b"" and gone == [number]

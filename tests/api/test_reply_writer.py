"""The writer of replies: what the kernel keeps of them for a peer that has not read yet."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from llmaas.api.acceptor import SEND_BUFFER
from llmaas.api.limits import Limits
from llmaas.api.reply_writer import PIECE, WIDE_BUFFER, ReplyWriter
from llmaas.api.shares import Shares
from llmaas.fair_thread import FairThread
from tests.support.loop import on_a_loop

APP = "1000/mail"


class Unread:
    """A transport whose peer has left so many bytes unread."""

    def __init__(self, n_unread: int) -> None:
        self.n_unread = n_unread
        self.sock, self.peer = socket.socketpair()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def get_write_buffer_size(self) -> int:
        return self.n_unread

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_extra_info(self, name: str) -> Any:
        return self.sock

    @property
    def kept(self) -> int:
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


def shares_of_one() -> Shares:
    return Shares(Limits(), (), cast(FairThread, None))


def writer_of(transport: Unread, shares: Shares) -> ReplyWriter:
    writer = ReplyWriter(cast(asyncio.Transport, transport), shares, lambda: None)
    writer.app = APP
    return writer


@pytest.mark.parametrize(("n_unread", "is_wide"), [(20_000, False), (WIDE_BUFFER // 2, True), (WIDE_BUFFER, True)])
@on_a_loop
async def test_of_a_large_reply_the_kernel_keeps_more_and_that_is_counted(n_unread: int, is_wide: bool) -> None:
    shares, transport = shares_of_one(), Unread(n_unread)
    writer, before = writer_of(transport, shares), transport.kept
    writer.pause()
    assert (transport.kept > before) == is_wide
    assert shares.buffers.held(APP) == n_unread + WIDE_BUFFER * is_wide
    writer.resume()
    assert transport.kept == before and shares.buffers.held(APP) == 0
    transport.close()


@on_a_loop
async def test_an_app_that_holds_its_share_has_no_more_kept(n_held: int = 7 << 20) -> None:
    shares, transport = shares_of_one(), Unread(1 << 20)
    shares.buffers.take_anyway(APP, n_held)
    writer, before = writer_of(transport, shares), transport.kept
    writer.pause()
    assert transport.kept == before and shares.buffers.held(APP) == n_held + (1 << 20)
    writer.close()
    assert shares.buffers.held(APP) == n_held
    transport.close()


@on_a_loop
async def test_a_socket_that_has_been_closed_does_no_harm() -> None:
    shares, transport = shares_of_one(), Unread(1 << 20)
    writer = writer_of(transport, shares)
    transport.close()
    writer.pause()
    writer.close()
    assert shares.buffers.held(APP) == 0


class Slow:
    """A transport that sends ``room`` bytes and keeps the rest, which it counts as asyncio's do."""

    def __init__(self) -> None:
        self.writer: ReplyWriter | None = None
        self.room = 0
        self.sent, self.kept = bytearray(), bytearray()
        self.given: list[int] = []
        self.closing = False

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return len(self.kept)

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> Any:
        return None

    def write(self, data: bytes | memoryview) -> None:
        self.given.append(len(data))
        self.kept += data
        self._send()
        if len(self.kept) > self.high and self.writer is not None and not self.writer.paused:
            self.writer.pause()

    def _send(self) -> None:
        n = min(self.room, len(self.kept))
        self.room -= n
        self.sent += self.kept[:n]
        del self.kept[:n]

    def takes(self, nbytes: int) -> None:
        """The socket has room for so many more."""
        self.room += nbytes
        self._send()
        if not self.kept and self.writer is not None and self.writer.paused:
            self.writer.resume()


def slow_writer(shares: Shares) -> tuple[Slow, ReplyWriter]:
    transport = Slow()
    writer = ReplyWriter(cast(asyncio.Transport, transport), shares, lambda: setattr(transport, "closing", True))
    writer.app, transport.writer = APP, writer
    return transport, writer


@on_a_loop
async def test_a_large_reply_goes_in_pieces_as_the_socket_takes_them_and_others_stay_behind_it() -> None:
    shares = shares_of_one()
    transport, writer = slow_writer(shares)
    large = bytes(range(256)) * (5 * PIECE // 512)  # two pieces and a half
    transport.takes(PIECE // 2)
    writer.write(b"before")
    writer.write(memoryview(large))
    writer.write(b"behind")
    assert writer.paused and transport.given == [6, PIECE], "the transport holds one piece"
    assert shares.buffers.held(APP) >= len(large) + 6 - PIECE // 2, "and what is left counts as well"
    while writer.paused:
        transport.takes(PIECE)
    transport.takes(PIECE)  # what is so little that it does not pause
    assert transport.sent == b"before" + large + b"behind" and max(transport.given) == PIECE
    assert shares.buffers.held(APP) == 0
    writer.write(b"later")
    transport.takes(5)
    assert transport.sent.endswith(b"behindlater")


@on_a_loop
async def test_all_that_is_left_is_given_to_a_transport_that_is_to_close() -> None:
    transport, writer = slow_writer(shares_of_one())
    large = bytes(3 * PIECE)
    writer.write(large)
    writer.write(b"the end")
    writer.write_all()
    assert transport.kept == large + b"the end"
    writer.close()


@on_a_loop
async def test_what_was_not_given_goes_with_the_connection() -> None:
    shares = shares_of_one()
    transport, writer = slow_writer(shares)
    writer.write(bytes(4 * PIECE))
    assert shares.buffers.held(APP) >= 4 * PIECE
    transport.closing = True
    transport.kept.clear()
    writer.close()
    assert shares.buffers.held(APP) == 0 and transport.given == [PIECE]


@on_a_loop
async def test_a_peer_that_leaves_more_unread_than_it_may_is_dropped_also_in_pieces() -> None:
    transport, writer = slow_writer(shares_of_one())
    for _ in range(9):
        writer.write(bytes(1 << 20))
    assert transport.closing
    writer.close()

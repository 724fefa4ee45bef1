"""The writer of replies: what the kernel keeps of them for a peer that has not read yet."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from llmaas.api.acceptor import SEND_BUFFER
from llmaas.api.limits import Limits
from llmaas.api.reply_writer import WIDE_BUFFER, ReplyWriter
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

"""Reads the first frame of a connection, and not a byte of what follows it: another process goes on with the rest.

Law: what a peer that sends nothing, or too much, takes is bounded in time and in bytes.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from llmaas.api.frame_reader import SMALL_FRAME
from llmaas.errors import BadRequest, FrameTooLarge

_LENGTH = struct.Struct(">I")


async def first_frame(sock: socket.socket, seconds: float) -> bytes:
    """The body of the first frame; ``sock`` must not block. Raises BadRequest, FrameTooLarge, ConnectionError."""
    try:
        return await asyncio.wait_for(_body(sock), seconds)
    except asyncio.TimeoutError:
        raise BadRequest(f"no hello within {seconds:g} s") from None


async def _body(sock: socket.socket) -> bytes:
    (size,) = _LENGTH.unpack(await _exactly(sock, _LENGTH.size))
    if size > SMALL_FRAME:
        raise FrameTooLarge(f"before the hello frames may have {SMALL_FRAME} bytes, not {size}")
    return await _exactly(sock, size)


async def _exactly(sock: socket.socket, n: int) -> bytes:
    found, loop = bytearray(), asyncio.get_running_loop()
    while len(found) < n:
        part = await loop.sock_recv(sock, n - len(found))
        if not part:
            raise ConnectionResetError("the peer has gone")
        found += part
    return bytes(found)

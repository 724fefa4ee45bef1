"""Watches a connection at the host's end until its first request, and passes a slot's memory on if that asks for one.

Law: it changes no byte of what passes. The daemon in the guest says which memory it has granted, for it alone knows
whose slots are whose; the client gets that one, and at most one. Only the first request is looked at: a client that
asks for a slot later gets none. What is held back meanwhile is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from struct import Struct

from llmaas.api.wire import read_body
from llmaas.errors import LlmaasError

_LENGTH = Struct(">I")
_MOST_ASKED, _MOST_HELD = 64, 64 << 10
"""Bytes of a request for a slot; of a frame that is looked at on its way down, such as the reply to the hello."""


class SlotTap:
    """Of one connection. ``memories``: the descriptors of the machine's."""

    def __init__(self, memories: Sequence[int]) -> None:
        self._memories = memories
        self._asked: int | None = None
        """The request for a slot that has not been answered yet."""
        self._over = not memories
        self._held = b""
        """Of a frame that has not come whole."""

    async def first_request(self, reader: asyncio.StreamReader) -> bytes:
        """What the client sends first after its hello: the beginning, or the whole if it asks for a slot."""
        if self._over:
            return b""
        head, body = b"", b""
        try:
            head = await reader.readexactly(_LENGTH.size)
            if _LENGTH.unpack(head)[0] <= _MOST_ASKED:
                body = await reader.readexactly(_LENGTH.unpack(head)[0])
                self._asked = _slot_request(body)
        except asyncio.IncompleteReadError as cut:
            head, body = (head, cut.partial) if head else (cut.partial, b"")
        self._over = self._asked is None
        return head + body

    def down(self, data: bytes) -> list[tuple[bytes, int | None]]:
        """What goes to the client, in parts, with the descriptor that goes with a part."""
        if self._over and not self._held:
            return [(data, None)]
        data, self._held = self._held + data, b""
        passed = 0
        while not self._over and len(data) - passed >= _LENGTH.size:
            size = _LENGTH.unpack_from(data, passed)[0]
            if size > _MOST_HELD:
                self._over = True
                break
            end = passed + _LENGTH.size + size
            if end > len(data):
                break
            if (memory := self._granted(data[passed + _LENGTH.size : end])) is not None:
                parts = [(data[:passed], None), (data[passed:end], memory), (data[end:], None)]
                return [part for part in parts if part[0]]
            passed = end
        if self._over:
            return [(data, None)]
        self._held = data[passed:]
        return [(data[:passed], None)] if passed else []

    def _granted(self, body: bytes) -> int | None:
        """The descriptor of the memory that this frame says was granted, if it is the reply to the request for one."""
        if self._asked is None:
            return None
        try:
            frame = read_body(body)
        except LlmaasError:
            return None
        if frame.get("id") != self._asked:
            return None
        self._over = True
        result = frame.get("result")
        device = result.get("device") if frame.get("type") == "done" and isinstance(result, dict) else None
        return self._memories[device] if type(device) is int and 0 <= device < len(self._memories) else None


def _slot_request(body: bytes) -> int | None:
    """Its id, if it is one."""
    try:
        frame = read_body(body)
    except LlmaasError:
        return None
    asked = frame.get("id")
    return asked if frame.get("op") == "slot" and type(asked) is int else None

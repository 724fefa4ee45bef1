"""Moves a connection of the service from its socket to a slot.

Law: only at rest: nothing is read or written on the one while the other is used, so no byte is lost or taken twice.
"""

from __future__ import annotations

import asyncio
import os
import socket

from llmaas.api import replies
from llmaas.api.record_maps import to_map
from llmaas.api.slot_message import OpenedSlot, OpenSlot
from llmaas.api.wire import encode
from llmaas.errors import BadRequest, Busy, LlmaasError, NotServing
from llmaas.slots.awake import AwakeSlots
from llmaas.slots.grants import GrantedSlot, SlotGrants, SlotSettings
from llmaas.slots.layout import VERSION
from llmaas.slots.transport import SlotTransport


class ServiceSlots:
    """The slots of one server, on the running event loop."""

    def __init__(self, settings: SlotSettings) -> None:
        self.grants = SlotGrants(settings)
        self._awake = AwakeSlots()

    def open(
        self,
        request_id: int,
        request: OpenSlot,
        protocol: asyncio.BufferedProtocol,
        transport: asyncio.Transport,
        app: str,
        owner: int,
    ) -> SlotTransport:
        """Grant a slot, and answer the request with it: the transport that ``protocol`` goes on with.

        Raises BadRequest, Busy, MachineError: then it goes on with the one that it has.
        """
        if isinstance(transport, SlotTransport):
            raise BadRequest("this connection has a slot already")
        if request.version != VERSION:
            raise BadRequest(f"field 'version': this daemon knows slots of version {VERSION}, not {request.version}")
        granted = self.grants.grant(app, owner)
        try:
            _send(transport, request_id, granted)
        except BaseException:
            granted.end.leave()
            self.grants.release(granted)
            raise
        finally:
            if granted.fd is not None:
                os.close(granted.fd)
        return SlotTransport(granted.end, transport, protocol, self._awake, lambda: self.grants.release(granted))


def _send(transport: asyncio.Transport, request_id: int, granted: GrantedSlot) -> None:
    """Nothing waits to be sent before it, so the kernel takes it whole or not at all."""
    opened = to_map(OpenedSlot(VERSION, granted.layout.nbytes, granted.generation, granted.device))
    if granted.fd is None:
        transport.write(encode(replies.done_frame(request_id, opened)))
        return
    del opened["device"]
    data = encode(replies.done_frame(request_id, opened))
    found = transport.get_extra_info("socket")
    with socket.socket(fileno=os.dup(found.fileno())) as sock:
        try:
            socket.send_fds(sock, [data], [granted.fd])
        except BlockingIOError:
            raise Busy("the slot's descriptor cannot be sent now", hint="Read all replies first.") from None
        except OSError as e:
            raise _lost(e) from e


def _lost(error: OSError) -> LlmaasError:
    return NotServing(f"the client is gone: {error.strerror}")

"""One client of an entry: its hello, its requests, its connections to nodes, its end.

Law: as at a daemon: a connection that ends cancels what it had running; what a client sends is bounded before it is
read, and one that does not read is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import nullcontext, suppress

from llmaas.api import replies
from llmaas.api.caller import Door
from llmaas.api.frame_reader import SMALL_FRAME
from llmaas.api.hello import Hello, app_id, hello_frame, read_hello, reply_frame
from llmaas.api.in_flight import as_llmaas_error
from llmaas.api.incoming import incoming_of
from llmaas.api.limits import DEFAULT_LIMITS
from llmaas.api.wire import MAX_FRAME, MAX_REQUEST_VALUES, Frame, encode, read_body
from llmaas.errors import BadRequest, Busy, Forbidden, LlmaasError, ShuttingDown
from llmaas.frozen import frozen
from llmaas.nodes.cluster.beginnings import Beginnings
from llmaas.nodes.cluster.controller import meant_model
from llmaas.nodes.cluster.entry_requests import EntryRequests
from llmaas.nodes.cluster.fleet import WayToNodes
from llmaas.nodes.cluster.node_connection import NodeConnection
from llmaas.nodes.cluster.routing import Routing
from llmaas.nodes.link import read_frame, read_size
from llmaas.nodes.tls import Streams
from llmaas.records import AppId
from llmaas.version import __version__

log = logging.getLogger(__name__)

_LIMITS = DEFAULT_LIMITS
_MOST_BYTES = 64 << 20
"""Of frames whose requests run, of all clients; small ones always find room, since their number is bounded."""
_READING = 8
"""Large frames that are read at once."""
_CLIENT = "llmaas cluster"


class FrameRoom:
    """What an entry holds of large frames, of all clients: ``reading`` at once, and while their requests run.

    >>> room = FrameRoom(most=5 << 20)
    >>> room.take(4 << 20), room.take(4 << 20), room.take(100)
    (True, False, True)
    """

    def __init__(self, most: int = _MOST_BYTES) -> None:
        self.reading = asyncio.Semaphore(_READING)
        self._left = most

    def take(self, nbytes: int) -> bool:
        """False if there is no room for a frame; else ``give`` makes room again."""
        if nbytes > SMALL_FRAME and nbytes > self._left:
            return False
        self._left -= nbytes
        return True

    def give(self, nbytes: int) -> None:
        self._left += nbytes


@frozen
class EntryParts:
    """What all clients of an entry share."""

    routing: Routing
    beginnings: Beginnings
    way: WayToNodes
    room: FrameRoom


class EntryConnection:
    """``uid``: whom the kernel says; ``door``: the socket that the client has come by."""

    def __init__(self, parts: EntryParts, uid: int, door: Door, streams: Streams) -> None:
        self._routing, self._beginnings, self._way, self._room = parts.routing, parts.beginnings, parts.way, parts.room
        self._uid, self._door = uid, door
        self._reader, self._writer = streams
        self._nodes: dict[str, NodeConnection] = {}
        self._connecting: dict[str, asyncio.Lock] = {}
        self._app = AppId("")
        self._writing = asyncio.Lock()

    async def serve(self) -> None:
        """Return when it is over."""
        requests: EntryRequests | None = None
        try:
            hello = await self._hello()
            self._app = app_id(os.geteuid(), hello.app or "")
            await self._send(await self._greeting(hello))
            requests = EntryRequests(self._routing, self._beginnings, self._node, self._app, hello.model, self._send)
            while True:
                await self._take(requests, await self._body())
        except (OSError, EOFError) as error:
            log.debug("a client has gone: %s", error)
        except asyncio.CancelledError:
            await self._say_last(ShuttingDown("the cluster's entry is stopping"))
            raise
        except Exception as error:
            await self._say_last(as_llmaas_error(error, "hello" if requests is None else "frame"))
        finally:
            try:
                if requests is not None:
                    await requests.close()
            finally:  # also where the entry ends meanwhile
                for node in self._nodes.values():
                    node.abort()
                self._writer.close()

    async def _hello(self) -> Hello:
        """Raises BadRequest, Forbidden, VersionMismatch."""
        try:
            frame = await asyncio.wait_for(read_frame(self._reader, SMALL_FRAME, MAX_REQUEST_VALUES), _LIMITS.hello_s)
        except asyncio.TimeoutError:
            raise BadRequest(f"no hello within {_LIMITS.hello_s:g} s") from None
        hello = read_hello(frame)
        owner = os.geteuid()
        meant = self._uid if hello.uid is None else hello.uid
        if hello.uid is not None and self._door is not Door.ADMIN:
            raise Forbidden("field 'uid': connections on behalf of other users are for the operator")
        if hello.token is not None or meant not in (owner, 0) or hello.app is None:
            raise Forbidden(
                "a cluster serves the apps of the user who runs its entry, without tokens",
                hint="Apps of others, and those with tokens, are served by each node's own daemon.",
            )
        return hello

    async def _greeting(self, hello: Hello) -> Frame:
        """What a daemon would say. Raises Busy, UnknownModel, and what the node says."""
        nodes = [node for node in await self._routing.fleet.nodes() if node.serving]
        if not nodes:
            raise Busy("no node of the cluster serves now", hint="'llmaas cluster status' says why.")
        model = meant_model(hello.model, [node.model for node in nodes])
        found = await self._node(next(node.place.name for node in nodes if node.model == model))
        facts = {name: value for name, value in found.greeting.items() if name not in ("type", "version", "server")}
        limits = dict(facts.pop("limits", None) or {})
        limits.update(max_frame=MAX_FRAME, max_in_flight=_LIMITS.max_in_flight)
        return reply_frame(f"llmaas/{__version__}", limits, {**facts, "app": self._app})

    async def _node(self, name: str) -> NodeConnection:
        """This client's connection to a node. Raises NodeUnreachable, NotTrusted, and what the node says."""
        async with self._connecting.setdefault(name, asyncio.Lock()):
            found = self._nodes.get(name)
            if found is not None and found.is_open:
                return found
            if found is not None:
                await found.close()
            place = next((node.place for node in await self._routing.fleet.nodes() if node.place.name == name), None)
            if place is None:
                raise Busy(f"the node {name} has left the cluster")
            label = self._app.partition("/")[2]
            opening = self._way.open(place)
            made = self._nodes[name] = await NodeConnection.open(name, opening, hello_frame(label, _CLIENT))
            return made

    async def _body(self) -> bytes:
        """The next frame's, once it has come. Raises EOFError, OSError, FrameTooLarge, BadRequest."""
        size = await read_size(self._reader, MAX_FRAME)
        async with self._room.reading if size > SMALL_FRAME else nullcontext():
            try:
                return await asyncio.wait_for(self._reader.readexactly(size), _LIMITS.frame_s)
            except asyncio.TimeoutError:
                raise BadRequest(f"a frame was not complete after {_LIMITS.frame_s:g} s") from None

    async def _take(self, requests: EntryRequests, body: bytes) -> None:
        frame = read_body(body, MAX_REQUEST_VALUES)
        incoming = incoming_of(frame)
        number = incoming.request_id
        refused: LlmaasError | None = None
        if isinstance(incoming.request, BadRequest | Busy):
            refused = incoming.request
        elif number is not None and requests.is_running(number):
            number, refused = None, BadRequest(f"field 'id': request {number} is still running")
        elif requests.n_running >= _LIMITS.max_in_flight:
            refused = Busy(f"{_LIMITS.max_in_flight} requests of this connection are running already")
        elif not self._room.take(len(body)):
            refused = Busy("the entry has no room for so large a request now")
        if refused is not None:
            await self._send(replies.failed_frame(number, refused))
            return
        assert number is not None and not isinstance(incoming.request, BadRequest | Busy)
        asked = {name: value for name, value in frame.items() if name != "id"}
        task = requests.take(number, asked, incoming.request)
        task.add_done_callback(lambda _: self._room.give(len(body)))

    async def _send(self, frame: Frame) -> None:
        """Raises OSError when the client is gone, or does not read."""
        async with self._writing:
            if self._writer.is_closing():
                raise ConnectionResetError("the client has gone")
            self._writer.write(encode(frame))
            try:
                await asyncio.wait_for(self._writer.drain(), _LIMITS.write_s)
            except asyncio.TimeoutError:
                self._writer.transport.abort()
                raise ConnectionResetError("the client does not read") from None

    async def _say_last(self, error: LlmaasError) -> None:
        with suppress(OSError):
            await self._send(replies.failed_frame(None, error))

"""What becomes of the requests of an entry's client: each goes to the node that has the context, or that is to have it.

Law: each request gets exactly one last reply. A piece of an answer is passed on as it comes; after the first one a call
is never asked for again elsewhere: whoever asked is told that the node was lost, and may ask again with its key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.adapter_messages import ListAdapters
from llmaas.api.embed_message import Embed
from llmaas.api.mark_messages import MarksOf
from llmaas.api.record_maps import to_map
from llmaas.api.slot_message import OpenSlot
from llmaas.api.transfer_messages import Export, ExportChunks, Import, ImportChunks, MoveToNode
from llmaas.api.wire import Frame
from llmaas.errors import (
    BadRequest,
    Cancelled,
    ContextExists,
    Forbidden,
    Internal,
    LlmaasError,
    NodeUnreachable,
    UnknownContext,
    UnknownRequest,
)
from llmaas.nodes.cluster.beginnings import Beginnings
from llmaas.nodes.cluster.node_connection import NodeConnection
from llmaas.nodes.cluster.prefixes import with_chains
from llmaas.nodes.cluster.public_names import (
    next_page,
    own_call,
    page_after,
    public_calls,
    public_info,
    public_result,
    public_word,
)
from llmaas.nodes.cluster.routing import Routing, new_tokens, nowhere
from llmaas.nodes.cluster.states import ClusterRefusal, ContextMove, FoundContext, PlaceAsked
from llmaas.nodes.link import end_tasks
from llmaas.records import AppId, Message

log = logging.getLogger(__name__)

Send = Callable[[Frame], Awaitable[None]]
OfContext = (
    msg.Fork | msg.Truncate | msg.Migrate | msg.Delete | msg.Show | msg.Hint | Export | ExportChunks | ImportChunks
)


class EntryRequests:
    """Of one client. ``connect``: its connection to a node; ``model``: the one that it named."""

    def __init__(
        self,
        routing: Routing,
        beginnings: Beginnings,
        connect: Callable[[str], Awaitable[NodeConnection]],
        app: AppId,
        model: str | None,
        send: Send,
    ) -> None:
        self._routing, self._beginnings, self._connect = routing, beginnings, connect
        self._own, self._app, self._model, self._send = app, app.partition("/")[2], model, send
        self._running: dict[int, asyncio.Task[None]] = {}
        self._at: dict[int, tuple[NodeConnection, int]] = {}
        """Where calls run, and their numbers there."""
        self._cancelled = set[int]()
        """Those that their client has ended before they were at any node."""

    @property
    def n_running(self) -> int:
        return len(self._running)

    def is_running(self, number: int) -> bool:
        return number in self._running

    def take(self, number: int, frame: Frame, request: msg.Request) -> asyncio.Task[None]:
        """Begin to serve a request."""
        task = asyncio.get_running_loop().create_task(self._serve(number, frame, request))
        self._running[number] = task
        task.add_done_callback(lambda _: self._running.pop(number, None))
        return task

    async def close(self) -> None:
        await end_tasks(list(self._running.values()))

    async def _serve(self, number: int, frame: Frame, request: msg.Request) -> None:
        try:
            reply = await self._answered(number, frame, request)
        except LlmaasError as error:
            reply = replies.failed_frame(number, error)
        except asyncio.CancelledError:
            if number not in self._cancelled:
                raise
            reply = replies.failed_frame(number, Cancelled("the request was cancelled"))
        except Exception:
            log.exception("a request failed")
            reply = replies.failed_frame(number, Internal("the request failed"))
        finally:
            self._at.pop(number, None)
            self._cancelled.discard(number)
        with suppress(OSError):  # whoever asked has gone, and its connection ends with all else
            await self._send({**reply, "id": number})

    async def _answered(self, number: int, frame: Frame, request: msg.Request) -> Frame:
        match request:
            case msg.Append() | msg.Generate():
                return await self._call(number, frame, request)
            case msg.Create() | Import():
                return await self._made(frame, request)
            case msg.Resolve():
                return await self._resolved(frame, request)
            case msg.Cancel() | msg.Prioritize():
                return await self._control(frame, request)
            case msg.ListContexts() | msg.ListRequests():
                return await self._page(frame, request)
            case msg.Ping():
                return replies.done_frame(number)
            case msg.Stats():
                return replies.done_frame(number, await self._stats())
            case Embed() | ListAdapters() | MarksOf():
                node = await self._routing.place_new(PlaceAsked(self._app, "", 0, self._model))
                return await (await self._connect(node)).ask(frame)
            case OpenSlot():
                raise BadRequest("a cluster has no slots: its contexts are on other machines", hint="Use the socket.")
            case (
                msg.Fork() | msg.Truncate() | msg.Migrate() | msg.Delete() | msg.Show() | msg.Hint()
                | Export() | ExportChunks() | ImportChunks()
            ):  # fmt: skip
                return await self._of_context(frame, request)
            case MoveToNode():
                return await self._moved(number, request)
            case _:
                raise Forbidden(
                    f"{msg.op_of(request)!r} is for the operator of one node",
                    hint="Give it to that node's own daemon, by its socket ('--socket').",
                )

    # -- contexts that are there

    async def _call(self, number: int, frame: Frame, request: msg.Append | msg.Generate) -> Frame:
        found, silent = await self._routing.placed(self._app, request.context, new_tokens(request))
        told = False

        async def piece(each: Frame) -> None:
            nonlocal told
            told = True
            await self._send({**each, "id": number})

        async def asked(connection: NodeConnection, there: Frame) -> Frame:
            own, reply = connection.begin(there, piece)
            self._at[number] = connection, own
            try:
                return await asyncio.shield(reply)
            except asyncio.CancelledError:
                if not reply.done() and connection.is_open:
                    connection.begin({"op": "cancel", "request": own}, _nobody)
                raise

        return await self._first_that_has(frame, request, request.context, found, silent, asked)

    async def _of_context(self, frame: Frame, request: OfContext) -> Frame:
        word = request.context
        if isinstance(request, msg.Fork) and request.name is not None:
            await self._refuse_taken(request.name)
        found, silent = await self._routing.candidates(self._app, word)
        reply = await self._first_that_has(frame, request, word, found, silent, NodeConnection.ask)
        if isinstance(request, msg.Delete) and reply.get("type") == "done":
            self._routing.gone(self._app, word)
        return reply

    async def _moved(self, number: int, request: MoveToNode) -> Frame:
        """By the agent of the node that has it, which learns how long it takes."""
        if request.name is not None:
            await self._refuse_taken(request.name)
        found = await self._owner(request.context)
        if isinstance(found, Sequence):
            raise nowhere(request.context, found)
        async with self._routing.alone(self._app, found.word):
            move = ContextMove(self._app, found.word, found.node, request.node, request.name, request.way)
            said = await self._routing.move(move)
        if isinstance(said, ClusterRefusal):
            raise said.error()
        return replies.done_frame(number, to_map(said))

    async def _first_that_has(
        self,
        frame: Frame,
        request: msg.Request,
        word: str,
        found: Sequence[FoundContext],
        silent: Sequence[str],
        ask: Callable[[NodeConnection, Frame], Awaitable[Frame]],
    ) -> Frame:
        """The reply of the first node that knows the context. Raises UnknownContext, NodeUnreachable."""
        silent = list(silent)
        for again in (False, True):
            moved = False
            for each in found:
                try:
                    connection = await self._connect(each.node)
                except NodeUnreachable:
                    silent.append(each.node)
                    continue
                reply = await ask(connection, {**frame, "context": each.word})
                if reply.get("type") != "failed" or reply.get("code") != UnknownContext.code:
                    return self._public(request, reply, each, word)
                moved = moved or "has moved to" in str(reply.get("message"))
            if again or not moved:
                break
            await self._routing.fleet.look()
            found, _ = await self._routing.candidates(self._app, word)
        self._routing.gone(self._app, word)
        raise nowhere(word, silent)

    def _public(self, request: msg.Request, reply: Frame, found: FoundContext, word: str) -> Frame:
        if reply.get("type") != "done":
            return reply
        self._routing.answered(self._app, word, found)
        result = reply.get("result")
        if isinstance(request, msg.Fork):
            self._routing.found_at(self._app, result, found.node)
        public = public_word(self._own, word, found.name)
        return {**reply, "result": public_result(request, result, self._own, public)}

    # -- contexts that are to be made

    async def _made(self, frame: Frame, request: msg.Create | Import) -> Frame:
        name = request.name if isinstance(request, msg.Create) or request.name else request.exported.name
        if name is None:
            return await self._make(frame, request, None)
        async with self._routing.alone(self._app, name):
            found = await self._owner(name)
            if not isinstance(found, FoundContext):
                return await self._make(frame, request, None, name)
            if not (isinstance(request, msg.Create) and request.exist_ok):
                raise ContextExists(f"there is a context {name!r} at the node {found.node}")
            return await self._make(frame, request, found.node)

    async def _make(
        self, frame: Frame, request: msg.Create | Import, node: str | None, name: str | None = None
    ) -> Frame:
        if node is None:
            asked = PlaceAsked(self._app, "", new_tokens(request), self._model, name)
            if isinstance(request, msg.Create) and request.system and not request.adapter:
                asked = await self._with_chains(asked, (Message("system", request.system),), answer=False)
            node = await self._routing.place_new(asked)
        reply = await (await self._connect(node)).ask(frame)
        self._routing.found_at(self._app, reply.get("result"), node)
        return {**reply, "result": public_info(reply.get("result"), self._own)} if "result" in reply else reply

    async def _owner(self, word: str) -> FoundContext | list[str]:
        """Where a context is; nodes that may have it and do not answer, if no other has it. Raises NodeUnreachable if
        one of these has told of it."""
        found, silent = await self._routing.candidates(self._app, word)
        for each in found:
            connection = await self._connect(each.node)
            reply = await connection.ask({"op": "export_chunks", "context": each.word})  # asks for none of them
            if reply.get("code") != UnknownContext.code:
                return each
        located = {each.node for each in await self._routing.fleet.locate(self._app, word)}
        if owners := located.intersection(silent):
            raise nowhere(word, sorted(owners))
        return silent

    async def _refuse_taken(self, name: str) -> None:
        if isinstance(found := await self._owner(name), FoundContext):
            raise ContextExists(f"there is a context {name!r} at the node {found.node}")

    async def _resolved(self, frame: Frame, request: msg.Resolve) -> Frame:
        near, n_near = self._beginnings.near(self._app, request.messages)
        asked = PlaceAsked(self._app, "", new_tokens(request), self._model, near=near, n_near=n_near)
        if not request.adapter:
            asked = await self._with_chains(asked, request.messages, answer=True)
        node = await self._routing.place_new(asked)
        reply = await (await self._connect(node)).ask(frame)
        result = reply.get("result")
        if isinstance(result, dict):
            self._beginnings.note(self._app, request.messages, node)
            self._routing.found_at(self._app, result.get("context"), node)
            return {**reply, "result": public_result(request, result, self._own, "")}
        return reply

    async def _with_chains(self, asked: PlaceAsked, messages: Sequence[Message], *, answer: bool) -> PlaceAsked:
        return await with_chains(asked, messages, await self._routing.fleet.nodes(), self._connect, answer=answer)

    # -- what is about no context

    async def _control(self, frame: Frame, request: msg.Cancel | msg.Prioritize) -> Frame:
        if request.call is not None:
            number, place = own_call(request.call)
            if (node := self._routing.node_of(place)) is None:
                raise UnknownRequest(f"no call {request.call} waits or runs")
            return await (await self._connect(node)).ask({**frame, "call": number})
        assert request.request is not None
        if (at := self._at.get(request.request)) is not None:
            connection, own = at
            return await connection.ask({**frame, "request": own})
        task = self._running.get(request.request)
        if task is None or not isinstance(request, msg.Cancel):
            raise UnknownRequest(f"no request {request.request} of this connection runs at a node")
        self._cancelled.add(request.request)
        task.cancel()
        return replies.done_frame(0)

    async def _page(self, frame: Frame, request: msg.ListContexts | msg.ListRequests) -> Frame:
        serving = sorted(node.place.name for node in await self._routing.fleet.nodes() if node.serving)
        if not serving:
            raise NodeUnreachable("no node of the cluster serves now")
        node, after = page_after(request.after, serving)
        asked = {name: value for name, value in frame.items() if name != "after"}
        reply = await (await self._connect(node)).ask(asked if after is None else {**asked, "after": after})
        if reply.get("type") != "done":
            return reply
        following = next_page(node, reply.get("next"), serving)
        result: Any = reply.get("result")
        if isinstance(request, msg.ListContexts):
            result = public_result(request, result, self._own, "")
        else:
            result = public_calls(result, self._own, self._routing.place_of(node))
        page = {"id": 0, "type": "done", "result": result}
        return page if following is None else {**page, "next": following}

    async def _stats(self) -> Frame:
        nodes = [to_map(node) for node in await self._routing.fleet.nodes()]
        active, waiting = (sum(node[name] for node in nodes) for name in ("n_active", "n_waiting"))
        return {
            "model": next((node["model"] for node in nodes if node["model"]), ""),
            "contexts": sum(node["n_contexts"] for node in nodes),
            "requests": {"active": active, "waiting": waiting},
            "nodes": {node["place"]["name"]: node for node in nodes},
        }


async def _nobody(frame: Frame) -> None:
    return None

"""Takes contexts to other nodes, and finds out what became of those of which that is not known.

Law: tokens go first. The other node owns the context from the moment at which its store has it; then its chunks are
sent as they are coded, once; then it is forgotten here. Where the other node's word is missing, it is asked until it
says one, and nobody uses the context meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from llmaas.api.messages import Generate
from llmaas.api.record_maps import from_map, to_map
from llmaas.api.transfer_records import MovedContext
from llmaas.calls import CallSpec, Done
from llmaas.errors import Forbidden, LlmaasError, Moving, NodeUnreachable, ShuttingDown
from llmaas.kvchunks.store.move_rows import MoveRow, MoveState
from llmaas.nodes.chunk_sender import CHUNK_BYTES, ChunkSender, ask_node, post_to
from llmaas.nodes.identity import NodeIdentity
from llmaas.nodes.link import NodeClient, connect_node, end_tasks
from llmaas.nodes.node_messages import GoOn, MoveAsked, MoveSettled, Offer, Spans, StageContext, Take
from llmaas.nodes.pinned import PinnedNode, PinnedNodes
from llmaas.nodes.ports import Departures, LeavingContext, SentContext
from llmaas.records import AppId, ContextSpan

log = logging.getLogger(__name__)

_SPAN_BYTES = 1 << 20
_SPANS = 1000
"""Of one frame."""
_ANSWER_S = 600.0
"""Between two tokens of an answer that goes on: the context may have to be computed there."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0


class NodeMover:
    """``own``: who this node is, found when it is first needed. For one event loop."""

    def __init__(self, departures: Departures, own: Callable[[], NodeIdentity], nodes: PinnedNodes) -> None:
        self._departures, self._own, self._nodes = departures, own, nodes
        self._doubts: dict[str, MoveRow] = {}
        self._tasks = set[asyncio.Task[Any]]()
        self._doubted, self._closing = asyncio.Event(), False

    async def start(self) -> None:
        """Go after moves of which the store does not know the end. Raises StoreFailed."""
        for row in await self._departures.known():
            if row.state is MoveState.LEAVING:
                self._doubt(row)
        self._spawn(self._clear_doubts())

    async def close(self) -> None:
        """End moves that are under way: what became of them is found out after the next start."""
        self._closing = True
        await end_tasks(self._tasks)

    def _spawn(self, do: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(do)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- a move

    async def move(
        self, app: AppId, context: str, node: str, name: str | None = None, chunks: bool = True
    ) -> MovedContext:
        """See ``api.transfer_operations.move``."""
        user, _, label = app.partition("/")
        if int(user) != os.geteuid():
            raise Forbidden(
                f"contexts of the user {user} stay here: a node takes those of the user who runs the daemon",
                hint="Use 'llmaas ctx export' and 'llmaas ctx import'.",
            )
        pinned = self._nodes.find(node)
        task = self._spawn(self._move(app, label, context, pinned, name, chunks))
        try:
            moved: MovedContext = await asyncio.shield(task)
            return moved
        except asyncio.CancelledError:
            if self._closing:
                raise ShuttingDown("the daemon is stopping") from None
            raise

    async def _move(
        self, app: AppId, label: str, context: str, pinned: PinnedNode, name: str | None, chunks: bool
    ) -> MovedContext:
        client = await connect_node(self._own(), pinned)
        try:
            if chunks and (ahead := await self._departures.waits_at(app, context)) is not None:
                await _send_ahead(client, ahead, label, name)
            async with self._departures.departure(app, context) as leaving:
                try:
                    moved, move = await self._hand_over(client, pinned, leaving, label, name, chunks)
                except LlmaasError as error:
                    if leaving.row is None:
                        leaving.goes_on_here()
                    leaving.answer_fails(error)  # unless it goes on
                    raise
                except BaseException:
                    leaving.answer_fails(ShuttingDown("the daemon is stopping"))
                    raise
                leaving.goes_on_there(partial(self._go_on, pinned, move))
                return moved
        finally:
            await client.close()

    async def _hand_over(
        self,
        client: NodeClient,
        pinned: PinnedNode,
        leaving: LeavingContext,
        label: str,
        name: str | None,
        chunks: bool,
    ) -> tuple[MovedContext, str]:
        there = name or leaving.exported.name
        move = await _announce(client, leaving, label, there)
        await leaving.begin(move, pinned.fingerprint)
        try:
            said = await self._taken(client, pinned, leaving, move)
            n_chunks, n_bytes = await self._finish(client, leaving, chunks=chunks)
        except BaseException:
            if leaving.row is not None:
                self._doubt(leaving.row)
            raise
        return MovedContext(pinned.name, there, said, n_chunks, n_bytes), move

    async def _go_on(
        self, pinned: PinnedNode, move: str, rest: CallSpec, tell: Callable[[Sequence[int]], None]
    ) -> Done:
        """Have the other node go on with an answer."""
        assert rest.generation is not None
        generation, terms = rest.generation, rest.terms
        asked = {"max_tokens": generation.max_tokens, "priority": terms.priority, "rate": terms.rate}
        answer = from_map(Generate, {"context": move, **asked, **to_map(generation.sampling)})
        client = await connect_node(self._own(), pinned)
        try:
            await post_to(client, GoOn(move, answer))
            while "tokens" in (frame := await client.reply(_ANSWER_S)):
                tell([int(token) for token in frame["tokens"]])
            return from_map(Done, frame.get("done"))
        finally:
            await client.close()

    async def _taken(self, client: NodeClient, pinned: PinnedNode, leaving: LeavingContext, move: str) -> int:
        """Have it taken; how many tokens. Raises Moving if that is not known, what the other node says if it is not."""
        try:
            said = await ask_node(client, Take(move))
            return int(said.get("n_tokens") or 0)
        except LlmaasError as error:
            failed = error
        try:  # whatever went wrong there, it may have been after the context was stored
            taken = bool((await ask_node(client, MoveAsked(move))).get("taken"))
        except LlmaasError:
            raise Moving(f"the node {pinned.name} does not say whether it has the context") from failed
        if not taken:
            await leaving.stays()
            leaving.row = None
            raise failed
        return sum(len(span.tokens) for span in leaving.exported.spans) // 4

    async def _finish(self, client: NodeClient, leaving: LeavingContext, *, chunks: bool = True) -> tuple[int, int]:
        """The other node owns it: send it the chunks that it lacks, and forget it here. How many chunks went, and their
        bytes. Raises what the store raises."""
        assert leaving.row is not None
        sender = ChunkSender(client, leaving, leaving.row.move)
        try:
            if chunks:
                await sender.send()
        except LlmaasError as error:
            log.warning("not all chunks of a context went to the node %s: %s", client.name, error.message)
        await leaving.is_gone(client.name)
        with suppress(LlmaasError):
            await ask_node(client, MoveSettled(leaving.row.move))
            await leaving.settled()
            return sender.n_chunks, sender.n_bytes
        self._doubt(leaving.row)
        return sender.n_chunks, sender.n_bytes

    # -- moves of which the end is not known

    def _doubt(self, row: MoveRow) -> None:
        self._doubts[row.move] = row
        self._doubted.set()

    async def _clear_doubts(self) -> None:
        wait = _FIRST_WAIT_S
        while not self._closing:
            self._doubted.clear()
            for row in list(self._doubts.values()):
                try:
                    await self._clear(row)
                except LlmaasError as error:
                    log.warning(
                        "what became of the move of context %s is not known yet: %s", row.context, error.message
                    )
                except Exception:
                    log.exception("what became of the move of context %s is not known", row.context)
                else:
                    del self._doubts[row.move]
                    wait = _FIRST_WAIT_S
            if not self._doubts:
                await self._doubted.wait()
                wait = _FIRST_WAIT_S
                continue
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._doubted.wait(), wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    async def _clear(self, row: MoveRow) -> None:
        """Raises LlmaasError if the other node cannot be asked."""
        pinned = next((node for node in self._nodes.read().values() if node.fingerprint == row.node), None)
        if pinned is None:
            log.warning("context %s stays here: the node that it was to go to is forgotten", row.context)
            await self._stays(row)
            return
        client = await connect_node(self._own(), pinned)
        try:
            taken = bool((await ask_node(client, MoveAsked(row.move))).get("taken"))
            async with self._departures.departure_in_doubt(row) as leaving:
                if leaving is None:
                    await ask_node(client, MoveSettled(row.move))
                    await self._departures.forget(row)
                elif taken:
                    log.info("context %s is at the node %s", row.context, pinned.name)
                    await self._finish(client, leaving)
                else:
                    log.info("context %s stays here: the node %s has not taken it", row.context, pinned.name)
                    await leaving.stays()
        finally:
            await client.close()

    async def _stays(self, row: MoveRow) -> None:
        async with self._departures.departure_in_doubt(row) as leaving:
            if leaving is None:
                await self._departures.forget(row)
            else:
                await leaving.stays()


async def _announce(client: NodeClient, context: SentContext, label: str, name: str) -> str:
    """Say what is to come, with all its tokens. Returns the name of the move."""
    exported, about, move = context.exported, await context.chunks((), 0, CHUNK_BYTES), secrets.token_hex(16)
    kinds = exported.model, exported.vocab, len(exported.spans), about.root, about.kv
    await ask_node(client, Offer(move, label, name, *kinds, context.adapter, context.ttl))
    for batch in _batches(exported.spans):
        await ask_node(client, Spans(move, batch))
    return move


async def _send_ahead(client: NodeClient, context: SentContext, label: str, name: str | None) -> None:
    """Send the chunks that are coded, while the context is answered: they do not change any more. Whatever fails, they
    are sent later, or computed there."""
    try:
        move = await _announce(client, context, label, name or context.exported.name)
        await ask_node(client, StageContext(move))
        await ChunkSender(client, context, move).send()
    except NodeUnreachable:
        raise
    except LlmaasError as error:
        log.info("chunks do not go to the node %s ahead: %s", client.name, error.message)


def _batches(spans: tuple[ContextSpan, ...]) -> Iterator[tuple[ContextSpan, ...]]:
    batch, n_bytes = list[ContextSpan](), 0
    for span in spans:
        batch.append(span)
        n_bytes += len(span.tokens) + 4 * len(span.text or "")
        if n_bytes >= _SPAN_BYTES or len(batch) >= _SPANS:
            yield tuple(batch)
            batch, n_bytes = [], 0
    if batch:
        yield tuple(batch)

"""Takes contexts to other nodes.

Law: tokens go first. The other node owns the context from the moment at which its store has it; then its chunks are
sent as they are coded, once; then it is forgotten here. Of one that is answered all but the newest tokens goes ahead,
and its answer goes on there before anything else is done. Where the other node's word is missing, nobody uses the
context until it has been asked (``doubts``).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from llmaas.api.transfer_records import MovedContext
from llmaas.clock import Clock, RealClock
from llmaas.errors import Forbidden, LlmaasError, Moving, ShuttingDown
from llmaas.kvchunks.store.move_rows import MoveState
from llmaas.nodes.announcing import announce
from llmaas.nodes.chunk_sender import ChunkSender, ask_node, number_in
from llmaas.nodes.doubts import MoveDoubts
from llmaas.nodes.identity import NodeIdentity
from llmaas.nodes.link import NodeClient, connect_node, end_tasks
from llmaas.nodes.node_messages import MoveAsked, MoveSettled, Take
from llmaas.nodes.pause import Pause
from llmaas.nodes.pinned import PinnedNode, PinnedNodes
from llmaas.nodes.ports import Departures, LeavingContext
from llmaas.nodes.remote_answer import RemoteAnswer
from llmaas.nodes.staged_move import StagedMove, guessed_costs
from llmaas.policies.migration import LinkCosts
from llmaas.records import TOKEN_BYTES, AppId

log = logging.getLogger(__name__)

_FIRST_TOKEN_S = 2.0
"""The answer that goes on there has so long until what is left of the move takes time from it."""


class NodeMover:
    """``own``: who this node is, found when it is first needed. For one event loop."""

    def __init__(
        self,
        departures: Departures,
        own: Callable[[], NodeIdentity],
        nodes: PinnedNodes,
        clock: Clock | None = None,
    ) -> None:
        self._departures, self._own, self._nodes = departures, own, nodes
        self._clock = clock or RealClock()
        self._costs: dict[str, LinkCosts] = {}
        """What was seen of each node, by its fingerprint."""
        self._doubts = MoveDoubts(departures, nodes, self._connect, self._finish)
        self._tasks = set[asyncio.Task[Any]]()
        self._closing = False

    async def start(self) -> None:
        """Go after moves of which the store does not know the end. Raises StoreFailed."""
        for row in await self._departures.known():
            if row.state is MoveState.LEAVING:
                self._doubts.add(row)
        self._spawn(self._doubts.run())

    async def close(self) -> None:
        """End moves that are under way: what became of them is found out after the next start."""
        self._closing = True
        await end_tasks(self._tasks)

    def _spawn(self, do: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(do)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, pinned: PinnedNode) -> NodeClient:
        return await connect_node(self._own(), pinned)

    async def move(
        self, app: AppId, context: str, node: str, name: str | None = None, way: str = "both"
    ) -> MovedContext:
        """See ``api.transfer_operations.move``."""
        user, _, label = app.partition("/")
        if int(user) != os.geteuid():
            raise Forbidden(
                f"contexts of the user {user} stay here: a node takes those of the user who runs the daemon",
                hint="Use 'llmaas ctx export' and 'llmaas ctx import'.",
            )
        pinned = self._nodes.find(node)
        task = self._spawn(self._move(app, label, context, pinned, name, way))
        try:
            moved: MovedContext = await asyncio.shield(task)
            return moved
        except asyncio.CancelledError:
            if self._closing:
                raise ShuttingDown("the daemon is stopping") from None
            raise

    async def _move(
        self, app: AppId, label: str, context: str, pinned: PinnedNode, name: str | None, way: str
    ) -> MovedContext:
        client = await self._connect(pinned)
        answer = RemoteAnswer(client, partial(self._connect, pinned))
        try:
            staged = await self._staged(app, label, context, pinned, client, name, way)
            pause = Pause(self._clock)
            async with self._departures.departure(app, context) as leaving:
                pause.mark("stopped")
                try:
                    if staged is not None and (take := staged.take(leaving.exported)) is not None:
                        take = replace(take, turns=leaving.turns)
                        return await self._hand_over(client, pinned, leaving, staged, take, answer, name, pause)
                    return await self._take_over(client, pinned, leaving, label, name, way, answer)
                except LlmaasError as error:
                    if leaving.row is None:
                        leaving.goes_on_here()
                    leaving.answer_fails(error)  # unless it goes on
                    raise
                except BaseException:
                    leaving.answer_fails(ShuttingDown("the daemon is stopping"))
                    raise
        finally:
            await answer.close()

    # -- one that is answered

    async def _staged(
        self,
        app: AppId,
        label: str,
        context: str,
        pinned: PinnedNode,
        client: NodeClient,
        name: str | None,
        way: str,
    ) -> StagedMove | None:
        """What waits there of a context that is answered; None if nothing does."""
        growing = await self._departures.answered(app, context)
        if growing is None:
            return None
        costs = self._costs.setdefault(pinned.fingerprint, guessed_costs())
        staged = StagedMove(client, growing, costs, self._clock)
        waits = await staged.bring(label, name or growing.exported.name, way)
        return staged if waits else None

    async def _hand_over(
        self,
        client: NodeClient,
        pinned: PinnedNode,
        leaving: LeavingContext,
        staged: StagedMove,
        take: Take,
        answer: RemoteAnswer,
        name: str | None,
        pause: Pause,
    ) -> MovedContext:
        """The answer has stopped, and all but its last tokens is there."""
        await leaving.begin(take.move, pinned.fingerprint)
        pause.mark("written here")
        try:
            said = await self._taken(client, pinned, leaving, take)
            pause.mark("taken there")
            leaving.goes_on_there(partial(answer.go_on, take.move))
            if leaving.is_answered:
                await answer.first(_FIRST_TOKEN_S)
                pause.mark("first token there")
                n_new = sum(len(span.tokens) for span in take.spans) // TOKEN_BYTES
                log.info(
                    "an answer has moved after %d rounds, %d tokens in the last: %s", staged.n_rounds, n_new, pause
                )
            await leaving.is_gone(pinned.name)
            await self._settle(answer, leaving)
        except BaseException:
            if leaving.row is not None:
                self._doubts.add(leaving.row)
            raise
        return MovedContext(pinned.name, name or leaving.exported.name, said, staged.n_chunks, staged.n_bytes)

    async def _settle(self, answer: RemoteAnswer, leaving: LeavingContext) -> None:
        assert leaving.row is not None
        with suppress(LlmaasError):
            client, mine = await answer.client()
            try:
                await ask_node(client, MoveSettled(leaving.row.move))
            finally:
                if mine:
                    await client.close()
            await leaving.settled()
            return
        self._doubts.add(leaving.row)

    # -- one that is at rest

    async def _take_over(
        self,
        client: NodeClient,
        pinned: PinnedNode,
        leaving: LeavingContext,
        label: str,
        name: str | None,
        way: str,
        answer: RemoteAnswer,
    ) -> MovedContext:
        there = name or leaving.exported.name
        move = await announce(client, leaving, label, there)
        await leaving.begin(move, pinned.fingerprint)
        try:
            said = await self._taken(client, pinned, leaving, Take(move, turns=leaving.turns))
            n_chunks, n_bytes = await self._finish(client, leaving, chunks=way != "tokens")
        except BaseException:
            if leaving.row is not None:
                self._doubts.add(leaving.row)
            raise
        leaving.goes_on_there(partial(answer.go_on, move))
        return MovedContext(pinned.name, there, said, n_chunks, n_bytes)

    async def _taken(self, client: NodeClient, pinned: PinnedNode, leaving: LeavingContext, take: Take) -> int:
        """Have it taken; how many tokens. Raises Moving if that is not known, what the other node says if it is not."""
        try:
            said = await ask_node(client, take)
            return int(number_in(pinned.name, said, "n_tokens"))
        except LlmaasError as error:
            failed = error
        try:  # whatever went wrong there, it may have been after the context was stored
            taken = bool((await ask_node(client, MoveAsked(take.move))).get("taken"))
        except LlmaasError:
            raise Moving(f"the node {pinned.name} does not say whether it has the context") from failed
        if not taken:
            await leaving.stays()
            leaving.row = None
            raise failed
        return leaving.exported.n_tokens

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
        self._doubts.add(leaving.row)
        return sender.n_chunks, sender.n_bytes

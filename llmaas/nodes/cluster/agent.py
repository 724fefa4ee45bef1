"""What stands beside the daemon of a node: it tells the cluster of it, and takes contexts to other nodes.

Law: it reads the daemon through its sockets, as any client does, and holds nothing that the daemon does not know, but
for what it has learnt of speeds. So it can be killed and begun again at any time. What it waits for has an end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmaas.api.async_client import AsyncClient
from llmaas.api.transfer_records import MovedContext
from llmaas.clock import Clock, RealClock
from llmaas.errors import LlmaasError, NodeUnreachable, NotTrusted, UnknownNode
from llmaas.nodes.cluster.daemon_facts import DaemonFacts, nothing_known, read_facts
from llmaas.nodes.cluster.door import NodeDoor, open_door
from llmaas.nodes.cluster.mark_book import MarkBook
from llmaas.nodes.cluster.model_state import ModelLook
from llmaas.nodes.cluster.speed import NodeSpeed
from llmaas.nodes.cluster.states import ClusterRefusal, ContextMove, NodePlace, NodeState
from llmaas.nodes.pinned import PinnedNodes
from llmaas.policies.linear_cost import LinearCost
from llmaas.policies.node_report import ModelTier, MovableCall, NodeReport, TransferCost
from llmaas.records import CHUNK_TOKENS, TOKEN_BYTES

log = logging.getLogger(__name__)

APP = "cluster"
"""By which the agent calls itself to its daemon."""
_FRESH_S = 0.5
"""What was read of the daemon so long ago is told again."""
_READ_S = 15.0
"""After so long without an answer the daemon does not serve."""
_MOVE_S = 900.0
_PAUSE_S = 0.3
"""That a client sees when its answer changes nodes (docs/results.md)."""
_BARRED_S = 60.0
"""A node to which a move failed is not chosen for so long."""


class NodeAgent:
    """For one event loop. What it begins, it begins when it is first asked: Ray makes it without one."""

    def __init__(self, place: NodePlace, clock: Clock | None = None) -> None:
        self._place, self._clock = place, clock or RealClock()
        self._run = secrets.token_hex(8)
        self._speed, self._look, self._marks = NodeSpeed(), ModelLook(place), MarkBook()
        self._links: dict[str, LinearCost] = {}
        self._barred: dict[str, float] = {}
        """Until when."""
        self._client: AsyncClient | None = None
        self._door: NodeDoor | None = None
        self._lock = asyncio.Lock()
        self._facts: DaemonFacts | None = None
        self._state: NodeState | None = None
        self._read_at = float("-inf")

    async def state(self, run: str = "", serial: int = -1, marks: int = -1, *, fresh: bool = False) -> NodeState:
        """What there is to tell. With the ``run`` and ``serial`` of a state that is known, without contexts if they are
        the same; with the number of the ``marks`` that are known, what has become of these. ``fresh``: read now."""
        async with self._lock:
            if fresh or self._state is None or self._clock.now() - self._read_at >= _FRESH_S:
                self._state = await self._read(fresh)
                self._read_at = self._clock.now()
            state = replace(self._state, marks=self._marks.since(marks if run == self._run else -1))
        return replace(state, contexts=None) if (run, serial) == (state.run, state.serial) else state

    async def close(self) -> None:
        """Let nobody in any more."""
        if self._door is not None:
            await self._door.close()
        if self._client is not None:
            await self._client.close()

    # -- what the daemon is like

    async def _read(self, fresh: bool) -> NodeState:
        if self._place.door is not None and self._door is None:
            try:
                self._door = open_door(self._place)
            except LlmaasError as error:
                return self._not_serving(error.message)
        try:
            facts = await asyncio.wait_for(self._read_daemon(fresh), _READ_S)
        except asyncio.TimeoutError:
            return await self._lost(f"its daemon does not answer within {_READ_S:g} s")
        except LlmaasError as error:
            return await self._lost(error.message)
        self._facts = facts
        self._marks.take(facts.marks)
        return NodeState(
            self._place,
            self._run,
            facts.serial,
            serving=True,
            pid=os.getpid(),
            model=facts.model.name,
            user=facts.user,
            fingerprint=facts.fingerprint,
            report=self._report(facts),
            token_bytes=facts.token_bytes,
            peers=self._peers(),
            barred=self._barred_now(),
            contexts=facts.contexts,
            n_contexts=facts.n_contexts,
            n_active=facts.n_active,
            n_waiting=facts.n_waiting,
        )

    async def _read_daemon(self, fresh: bool) -> DaemonFacts:
        model = await self._look.look()
        if model is not None and (model.tier is not ModelTier.LOADED or model.ready_s > 0):
            # To connect would load it: what was known of its contexts still holds.
            return replace(self._facts or nothing_known(model), model=model, n_active=0, n_waiting=0, answering=())
        if self._client is None or not self._client.is_open:
            if self._client is not None:
                await self._client.close()
            place = self._place
            self._client = await AsyncClient.connect(
                Path(place.socket), app=APP, daemon_uid=place.daemon_uid, admin=True, timeout=_READ_S
            )
        return await read_facts(self._client, self._speed, self._facts, self._clock, model=model, fresh=fresh)

    async def _lost(self, why: str) -> NodeState:
        client, self._client = self._client, None
        self._look.forget()
        if client is not None:
            with suppress(LlmaasError, OSError):
                await client.close()
        return self._not_serving(why)

    def _not_serving(self, why: str) -> NodeState:
        """Its contexts are still its own."""
        facts = self._facts
        if facts is None:
            return NodeState(self._place, self._run, 0, serving=False, why=why, pid=os.getpid(), contexts=())
        return NodeState(
            self._place,
            self._run,
            facts.serial,
            serving=False,
            why=why,
            pid=os.getpid(),
            model=facts.model.name,
            contexts=facts.contexts,
            n_contexts=facts.n_contexts,
        )

    def _report(self, facts: DaemonFacts) -> NodeReport:
        speed = self._speed
        return NodeReport(
            self._place.name,
            models=facts.model.here(speed.prefill_rate),
            loads=facts.model.loads,
            read=TransferCost.learnt(speed.read),
            queue_s=speed.queue_s(facts.n_waiting),
            drain_s=speed.queue_s(facts.n_active),
            loading_s=facts.model.loading_s,
            movable=self._movable(facts),
            links={name: TransferCost.learnt(cost) for name, cost in self._links.items()},
        )

    def _movable(self, facts: DaemonFacts) -> tuple[MovableCall, ...]:
        """Answers that are being given now, and may go on elsewhere."""
        wait_s = self._speed.queue_s(max(0, facts.n_waiting - 1))
        return tuple(
            MovableCall(
                f"{app}/{name}", facts.model.name, 0, n, int(n * facts.token_bytes), 0, wait_s, pause_s=_PAUSE_S
            )
            for app, name, n in facts.answering
        )

    def _peers(self) -> tuple[str, ...] | None:
        if self._place.data_dir is None:
            return None
        with suppress(LlmaasError):
            nodes = PinnedNodes(Path(self._place.data_dir)).read().values()
            return tuple(sorted(node.name for node in nodes if node.address))
        return None

    def _barred_now(self) -> tuple[str, ...]:
        now = self._clock.now()
        self._barred = {name: until for name, until in self._barred.items() if until > now}
        return tuple(sorted(self._barred))

    # -- contexts that leave

    async def move(self, move: ContextMove) -> MovedContext | ClusterRefusal:
        """Take a context to another node. Asked twice, it does so once: then it is not known here any more."""
        place, target, begun = self._place, move.target, self._clock.now()
        try:
            client = await AsyncClient.connect(Path(place.socket), app=move.app, daemon_uid=place.daemon_uid)
            try:
                asked = client.move(move.name, target, name=move.name_there, way=move.way)
                moved = await asyncio.wait_for(asked, _MOVE_S)
            finally:
                await client.close()
        except asyncio.TimeoutError:
            return ClusterRefusal.of(NodeUnreachable(f"{move.name!r} is not at {target} after {_MOVE_S:g} s"))
        except LlmaasError as error:
            if isinstance(error, (NodeUnreachable, NotTrusted, UnknownNode)):
                self._barred[target] = self._clock.now() + _BARRED_S
            return ClusterRefusal.of(error)
        self._learn(moved, self._clock.now() - begun)
        self._read_at = float("-inf")
        return moved

    def _learn(self, moved: MovedContext, seconds: float) -> None:
        link = self._links.setdefault(moved.node, LinearCost(1e-3, 1e-8))
        link.observe(1.0, moved.n_bytes or moved.n_tokens * TOKEN_BYTES, seconds)
        if moved.n_chunks and self._facts is not None:
            self._facts = replace(self._facts, token_bytes=moved.n_bytes / (moved.n_chunks * CHUNK_TOKENS))

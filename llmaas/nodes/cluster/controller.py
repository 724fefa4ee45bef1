"""Answers where calls go: by what the nodes tell, and the policy ``policies.placement``.

Law: it decides and does nothing. All that it knows it has from the nodes, but for what it has said in the last seconds,
so that one that is begun anew knows the same as soon as it has asked them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from llmaas.clock import Clock, RealClock
from llmaas.errors import Busy, LlmaasError, NodeUnreachable, UnknownModel
from llmaas.nodes.cluster.directory import ClusterDirectory
from llmaas.nodes.cluster.promises import Promises
from llmaas.nodes.cluster.states import (
    MOST_NODES,
    CallPlacement,
    ClusterRefusal,
    ContextMove,
    FoundContext,
    NodePlace,
    NodeState,
    NodeSummary,
    PlaceAsked,
)
from llmaas.nodes.cluster.taken_marks import TakenMarks
from llmaas.policies.node_report import CallToPlace, ModelTier, NodeReport, TransferCost
from llmaas.policies.node_table import NodeTable
from llmaas.policies.placement import Nowhere, PlacedCall, place

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often nodes are asked."""
ANSWER_S = 20.0
"""A node that has not answered by then is not waited for."""
OLD_S = 5.0
"""No new call goes to a node that has not said for so long that it serves."""
_GUESSED_LINK = TransferCost(0.1, 1e-8)
"""Before anything went over a link: 100 MB/s, and two transactions."""
_GUESSED_RATE = 100.0
"""Tokens of a prompt a second, before any node was seen to compute one: a small board's."""
_ACTIVE_S, _CONTEXT_S = 0.01, 1e-5
"""What a call that runs, and a context, count where a new conversation is placed."""
_WORTH_S = 0.25
"""A context moves, or makes another one move, for no less: estimates are not better than that, and each move writes to
two disks."""


class Agents(Protocol):
    """The agents of all nodes that have joined."""

    async def names(self) -> Sequence[str]: ...

    async def state(self, node: str, run: str, serial: int, marks: int, fresh: bool) -> NodeState | None:
        """See ``NodeAgent.state``; None if it cannot be asked."""


class PlacementController:
    """For one event loop. It looks at nodes from the first question on."""

    def __init__(self, agents: Agents, clock: Clock | None = None) -> None:
        self._agents, self._clock = agents, clock or RealClock()
        self._directory = ClusterDirectory()
        self._table, self._promises = NodeTable(), Promises()
        self._marks = TakenMarks(self._table)
        self._looking: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        """All nodes that there were have been asked once."""

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def pid(self) -> int:
        """Of the process that it runs in."""
        return os.getpid()

    # -- questions

    async def nodes(self) -> list[NodeSummary]:
        """All that have joined, by name."""
        await self._begun()
        now = self._clock.now()
        return [self._summary(state, now) for _, state in sorted(self._directory.states.items())]

    async def twice(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """See ``ClusterDirectory.twice``."""
        await self._begun()
        return self._directory.twice()

    async def look(self) -> None:
        """Ask all nodes now."""
        await self._begun()
        await self._look(fresh=True)

    async def locate(self, app: str, word: str) -> list[FoundContext]:
        """Where a context is, as far as is known: at one node, if all is well."""
        await self._begun()
        return self._located(app, word)

    async def where(self, asked: PlaceAsked) -> CallPlacement | ClusterRefusal:
        """Where to serve a call."""
        await self._begun()
        try:
            return self._where(asked)
        except LlmaasError as error:
            return ClusterRefusal.of(error)

    # -- looking at nodes

    async def _begun(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look_again())
        await self._first.wait()

    async def _look_again(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("the nodes could not be looked at")
            self._first.set()
            await asyncio.sleep(LOOK_S)

    async def _look(self, *, fresh: bool = False) -> None:
        names = list(await self._agents.names())[:MOST_NODES]
        for gone in self._directory.states.keys() - set(names):
            log.info("the node %s has left", gone)
            self._directory.drop(gone)
            self._forget(gone)
        await asyncio.gather(*(self._ask(name, fresh) for name in names))

    async def _ask(self, name: str, fresh: bool) -> None:
        run, serial = self._directory.known(name)
        try:
            asked = self._agents.state(name, run, serial, self._marks.serial(name), fresh)
            state = await asyncio.wait_for(asked, ANSWER_S)
        except asyncio.TimeoutError:
            state = None
        if state is None:
            self._silent(name)
            return
        now = self._clock.now()
        self._directory.take(state, now)
        if state.report is None:
            self._forget(name)
            return
        self._table.report(replace(state.report, links=self._links(state)), now)
        if state.marks is not None:
            await self._marks.take(name, state.marks)

    def _forget(self, name: str) -> None:
        self._table.forget(name)
        self._marks.forget(name)

    def _silent(self, name: str) -> None:
        """Its agent does not answer. What it has told of its contexts holds on."""
        why = "its agent does not answer: the machine is off, or Ray does not run there"
        before = self._directory.states.get(name) or NodeState(NodePlace(name, ""), "", -1, serving=False, contexts=())
        self._directory.take(replace(before, serving=False, why=why, n_active=0, n_waiting=0), self._clock.now())
        self._forget(name)

    # -- answers

    def _summary(self, state: NodeState, now: float) -> NodeSummary:
        report = state.report
        here = None if report is None else report.models.get(state.model)
        load = None if report is None or here is None else report.loads.get(here.tier)
        return NodeSummary(
            state.place,
            state.serving,
            state.why,
            state.model,
            state.n_contexts,
            state.n_active,
            state.n_waiting,
            self._directory.age_s(state.name, now),
            state.pid,
            prefill_rate=0.0 if here is None else here.prefill_rate,
            queue_s=0.0 if report is None else report.queue_s,
            links=tuple(sorted(self._links(state))),
            n_marks=self._table.marks.n_of(state.name),
            in_memory=here is not None and here.tier is ModelTier.LOADED,
            start_s=0.0 if here is None else here.ready_s + (load(0) if load is not None else 0.0),
            user=state.user,
            fingerprint=state.fingerprint,
        )

    def _located(self, app: str, word: str) -> list[FoundContext]:
        """The first is where it should be by now; the others may have had it, or have another one of that name."""
        found = self._directory.find(app, word)
        said = self._promises.location(app, word, self._clock.now())
        if said is None or (len(found) == 1 and not said[1]):
            return found
        promised, _ = said
        there = [each for each in found if each.node == promised.node]
        return [*(there or [promised]), *(each for each in found if each.node != promised.node)]

    def _where(self, asked: PlaceAsked) -> CallPlacement:
        now = self._clock.now()
        found = self._located(asked.app, asked.word) if asked.word else []
        if asked.word and not found:
            raise NodeUnreachable(f"no node has told of the context {asked.word!r}")
        owner = found[0] if found else None
        live = self._live(now)
        if owner is not None and owner.node not in live:
            raise self._unreachable(owner.node, f"has the context {owner.name or owner.word!r}, and")
        call, held = self._call(asked, owner, live)
        able = {name for name, state in live.items() if state.model == call.model}
        if owner is not None and owner.word != owner.name:  # one without a name of its own stays where it is
            able &= {owner.node}
        known = [report for name, report in sorted(self._table.nodes.items()) if name in live]
        nodes = with_rates(known, call.model)
        if owner is None:  # what a node has of a beginning is there only: contexts move, beginnings do not
            nodes = [_bare(each, live[each.name], now) for each in nodes]
        placed = place(call, nodes, held, now=now, only=able)
        if owner is not None and isinstance(placed, PlacedCall) and (placed.node != owner.node or placed.move):
            stays = place(call, [replace(node, movable=()) for node in nodes], held, now=now, only={owner.node})
            if isinstance(stays, PlacedCall) and stays.cost_s - placed.cost_s < _WORTH_S:
                placed = stays
        if isinstance(placed, Nowhere):
            if owner is not None:
                return CallPlacement(owner.node)
            raise Busy(f"no node can serve this now: {placed.value}", hint="'llmaas cluster status' shows the nodes.")
        self._table.placed(call, placed, now)
        return self._placement(asked, owner, placed, now)

    def _live(self, now: float) -> dict[str, NodeState]:
        states = self._directory.states.items()
        return {name: state for name, state in states if state.serving and self._directory.age_s(name, now) <= OLD_S}

    def _unreachable(self, node: str, what: str) -> LlmaasError:
        state = self._directory.states.get(node)
        why = "has left the cluster" if state is None else state.why or "has not answered for some seconds"
        return NodeUnreachable(
            f"the node {node} {what} {why}" if state is None else f"the node {node} {what} does not serve: {why}",
            hint="It is served again when that node is back. 'llmaas cluster status' shows the nodes.",
        )

    def _links(self, state: NodeState) -> dict[str, TransferCost]:
        """To nodes that it reaches, as far as is known."""
        learnt = {} if state.report is None else state.report.links
        others = self._directory.states.keys() if state.peers is None else state.peers
        return {
            name: learnt.get(name, _GUESSED_LINK)
            for name in others
            if name != state.name and name not in state.barred and name in self._directory.states
        }

    def _call(
        self, asked: PlaceAsked, owner: FoundContext | None, live: Mapping[str, NodeState]
    ) -> tuple[CallToPlace, dict[str, int]]:
        """What the policy is asked, and which nodes hold how much of the context. Raises UnknownModel, Busy."""
        token_bytes = max((state.token_bytes for state in live.values()), default=0.0)
        if owner is not None:
            model, held = live[owner.node].model, {owner.node: owner.n_held}
            call = CallToPlace(model, 0, asked.n_new, tokens=owner.n_tokens, token_bytes=token_bytes, owner=owner.node)
            return call, held
        models = [state.model for state in live.values()]
        if not models:
            raise Busy("no node of the cluster serves now", hint="'llmaas cluster status' says why.")
        model, held = meant_model(asked.model, models), self._marks.held(asked, live)
        n_known = max(held.values(), default=0)
        call = CallToPlace(model, 0, asked.n_new - n_known, tokens=n_known, token_bytes=token_bytes)
        return call, held

    def _placement(
        self, asked: PlaceAsked, owner: FoundContext | None, placed: PlacedCall, now: float
    ) -> CallPlacement:
        """Until nodes have told of it, calls that come count on what is said here."""
        moves = []
        if placed.move is not None:
            app, _, name = placed.move.call.name.partition("/")
            moves.append(ContextMove(app, name, placed.node, placed.move.to))
        if owner is None:
            if asked.name is not None:
                self._promises.note(asked.app, FoundContext(placed.node, asked.name, name=asked.name), now)
        elif owner.node != placed.node:
            self._promises.note(asked.app, replace(owner, node=placed.node), now)
            moves.append(ContextMove(asked.app, owner.word, owner.node, placed.node))
        return CallPlacement(placed.node, placed.start_s, tuple(moves))


def _bare(report: NodeReport, state: NodeState, now: float) -> NodeReport:
    """For a call without a context. Of nodes which would begin as soon the one is chosen that has least to do and least
    to keep, and not always the first by name: that does not become less with the age of the report."""
    queue_s = max(0.0, report.queue_s + report.at - now)
    return replace(
        report, links={}, at=now, queue_s=queue_s + _ACTIVE_S * state.n_active + _CONTEXT_S * state.n_contexts
    )


def with_rates(nodes: Sequence[NodeReport], model: str) -> list[NodeReport]:
    """A node whose speed nobody has seen yet is taken to be as fast as the others are in the mean: else no prompt would
    ever go there, and it would stay unseen."""
    rates = [here.prefill_rate for node in nodes if (here := node.models.get(model)) and here.prefill_rate]
    guess = sum(rates) / len(rates) if rates else _GUESSED_RATE
    return [
        replace(node, models={**node.models, model: replace(here, prefill_rate=guess)})
        if (here := node.models.get(model)) is not None and not here.prefill_rate
        else node
        for node in nodes
    ]


def meant_model(wanted: str | None, of_nodes: Sequence[str]) -> str:
    """The model that a client means: the one that most nodes serve, if it names none. Raises UnknownModel.

    >>> meant_model(None, ["a.gguf", "b.gguf", "b.gguf"]), meant_model("a", ["a.gguf", "b.gguf"])
    ('b.gguf', 'a.gguf')
    """
    models = sorted(set(of_nodes))
    if wanted is None:
        return max(models, key=lambda model: (of_nodes.count(model), model))
    for model in models:
        if wanted in (model, model.removesuffix(".gguf")):
            return model
    raise UnknownModel(
        f"no node serves the model {wanted[:80]!r}; there are: {', '.join(models)}",
        hint="Name one of these, or none: then it is the one that most nodes serve.",
    )

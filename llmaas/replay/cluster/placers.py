"""Who decides where a call goes: the service's policy, and what it is compared with.

Law: a placer sees what nodes report, and decides. What then happens to a call is the same under all of them: the node
gets the context by the soonest way, loads the model if it must, and answers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Protocol

from llmaas.frozen import frozen
from llmaas.policies.node_report import CallToPlace, ModelTier
from llmaas.policies.node_table import NodeTable
from llmaas.policies.placement import Nowhere, PlacedCall
from llmaas.replay.cluster.job import ClusterJob
from llmaas.replay.cluster.node import ClusterNode

Draw = Callable[[int], int]
"""A number from 0 to below that one, at random."""


@frozen
class Preempt:
    """Stop that call, which begins anew elsewhere, and serve in its place."""

    victim: ClusterJob
    placed: PlacedCall


Choice = PlacedCall | Preempt | Nowhere


@frozen
class ClusterView:
    """What a placer is asked with."""

    now: float
    table: NodeTable
    nodes: Mapping[str, ClusterNode]
    able: Mapping[str, tuple[ClusterNode, ...]]
    """By model: the nodes that it fits on."""


class Placer(Protocol):
    moves: bool
    """Whether it moves calls that run."""

    def choose(self, call: CallToPlace, view: ClusterView) -> Choice: ...


class Ours:
    """``policies.placement``, as the service runs it."""

    moves = True

    def choose(self, call: CallToPlace, view: ClusterView) -> Choice:
        return view.table.place(call, view.now)


class ServerlessLlm:
    """The start-up time of the model alone: queue, load, or a call that is moved (arXiv 2401.14351, section 6). It
    knows no contexts: to it, every call brings all of its tokens.
    """

    moves = True

    def choose(self, call: CallToPlace, view: ClusterView) -> Choice:
        blind = dataclasses.replace(call, new_tokens=call.new_tokens + call.tokens, tokens=0, chain=(), owner="")
        found = view.table.place(blind, view.now, load_share=1.0)
        if isinstance(found, Nowhere):
            return found
        there = view.table.place(call, view.now, only={found.node})
        if isinstance(there, Nowhere):
            return there
        return dataclasses.replace(found, context=there.context, prefill_s=there.prefill_s)


class AnyNode:
    moves = False

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def choose(self, call: CallToPlace, view: ClusterView) -> Choice:
        able = view.able[call.model]
        return _at(able[self._draw(len(able))], call, view) if able else Nowhere.NO_ROOM


class InTurn:
    moves = False

    def __init__(self, draw: Draw) -> None:
        self._next = itertools.count()

    def choose(self, call: CallToPlace, view: ClusterView) -> Choice:
        able = view.able[call.model]
        return _at(able[next(self._next) % len(able)], call, view) if able else Nowhere.NO_ROOM


class LeastLoaded:
    """The fewest calls that run or wait; of equal ones any."""

    moves = False

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def choose(self, call: CallToPlace, view: ClusterView) -> Choice:
        able = view.able[call.model]
        return _at(self._least(able), call, view) if able else Nowhere.NO_ROOM

    def _least(self, able: tuple[ClusterNode, ...]) -> ClusterNode:
        least = min(len(n.running) + len(n.waiting) for n in able)
        found = [n for n in able if len(n.running) + len(n.waiting) == least]
        return found[self._draw(len(found))]


class Available(LeastLoaded):
    """Any node that could begin at once, wherever models are; if there is none, one where a call can be stopped for it
    (as Shepherd does, NSDI 2023), which begins anew. No call is stopped twice. If nobody can be, the least loaded.
    """

    def choose(self, call: CallToPlace, view: ClusterView) -> Choice:
        able = view.able[call.model]
        free = [n for n in able if _is_free(n, call)]
        if free:
            return _at(free[self._draw(len(free))], call, view)
        stoppable = [(n, victim) for n in able if (victim := _stoppable(n, call)) is not None]
        if not stoppable:
            return super().choose(call, view)
        return _stop(*stoppable[self._draw(len(stoppable))], call, view)


class Shepherd:
    """Where it starts soonest by ServerlessLLM's estimates, if calls in the way are stopped: its "Shepherd*"."""

    moves = False

    def __init__(self, draw: Draw) -> None:
        self._blind = ServerlessLlm()

    def choose(self, call: CallToPlace, view: ClusterView) -> Choice:
        waiting = self._blind.choose(call, view)
        if isinstance(waiting, Nowhere | Preempt) or not waiting.wait_s:
            return waiting
        waits_s = waiting.wait_s + waiting.load_s
        stops = [
            (begins_s, node.name, victim)
            for node in view.able[call.model]
            if (victim := _stoppable(node, call)) is not None
            and (begins_s := _begins_s(node, call, view.now)) < waits_s
        ]
        if not stops:
            return waiting
        _, name, victim = min(stops, key=lambda stop: stop[:2])
        return _stop(view.nodes[name], victim, call, view)


PLACERS: dict[str, Callable[[Draw], Placer]] = {
    "placement": lambda draw: Ours(),
    "serverlessllm": lambda draw: ServerlessLlm(),
    "shepherd": Shepherd,
    "availability": Available,
    "least_loaded": LeastLoaded,
    "round_robin": InTurn,
    "random": AnyNode,
}
"""Every placer by its name."""


def _at(node: ClusterNode, call: CallToPlace, view: ClusterView) -> PlacedCall | Nowhere:
    return view.table.place(call, view.now, only={node.name})


def _is_free(node: ClusterNode, call: CallToPlace) -> bool:
    return node.has_lane and not node.waiting and node.has_room(node.models[call.model])


def _begins_s(node: ClusterNode, call: CallToPlace, now: float) -> float:
    """Seconds until it has its turn and its model there, if a call is stopped for it."""
    tier = node.tier(call.model)
    load_s = 0.0 if tier is ModelTier.LOADED else node.learnt[tier](1.0, call.model_bytes)
    return max(0.0, node.engine_free - now) + load_s


def _stoppable(node: ClusterNode, call: CallToPlace) -> ClusterJob | None:
    """The call that has run there for the shortest time, if stopping it makes room."""
    if node.waiting:
        return None
    for job in reversed(node.running):
        room = node.free_bytes + node.frees(job.call.model)
        fits = node.tier(call.model) is ModelTier.LOADED or call.model_bytes <= room
        if fits and not job.preempted and job.guest_of is None and job.started is not None:
            return job
    return None


def _stop(node: ClusterNode, victim: ClusterJob, call: CallToPlace, view: ClusterView) -> Choice:
    placed = _at(node, call, view)
    return placed if isinstance(placed, Nowhere) else Preempt(victim, placed)

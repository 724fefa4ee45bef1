"""Which node serves a call: the one where it is expected to start soonest.

Law: pure, exact among its candidates, and deterministic: of equal ones that which moves nothing, then the first by
name.

    start = wait + load (q + n/b) + the context (read here | brought over a link | recomputed) + prefill of what is new

The candidates are those of ServerlessLLM (arXiv 2401.14351, section 6): serve where the model is, load it elsewhere, or
move a call that is in the way to another node and serve in its place. What it leaves out is the context, which costs as
much as a model does: 3,000 tokens are 20 MB over a link, or half a minute of a small board's work. That a call goes
where its context is (session affinity) is no rule here; it falls out of the sum, and so does when to give it up.

A call that is moved waits too: its pause counts as seconds of the new one do.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmaas.policies.node_report import CallToPlace, ModelTier, MovableCall, NodeReport
from llmaas.records import TOKEN_BYTES

MOST_SOURCES = 8
"""Nodes that chunks may come from, those that hold most first. All nodes of an app may hold its first chunks."""


class Nowhere(enum.Enum):
    """Why no node can serve a call."""

    NO_MODEL = "no node has the model or can fetch and run it"
    NO_ROOM = "no node has so much memory for models"
    NO_TOKENS = "no node that could serve it reaches the one that owns the context"


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """How the tokens of a context come into a node's cells, front first: read, brought from ``source``, computed."""

    seconds: float = 0.0
    read: int = 0
    brought: int = 0
    recomputed: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class CallMove:
    """A call that makes room: it goes on at the node ``to`` after ``seconds``; meanwhile it goes on where it is."""

    call: MovableCall
    to: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """Where a call is to be served, and the seconds that are expected until its first token."""

    node: str
    tier: ModelTier
    """Where the node has the model now: it loads it unless that is ``LOADED``."""
    wait_s: float
    """Until it has its turn, after the move if there is one."""
    load_s: float
    context: ContextPlan
    prefill_s: float
    move: CallMove | None = None

    @property
    def start_s(self) -> float:
        moved = 0.0 if self.move is None else self.move.seconds
        return moved + self.wait_s + self.load_s + self.context.seconds + self.prefill_s

    @property
    def cost_s(self) -> float:
        """What is minimised: seconds until it starts, and those that it makes another call wait."""
        return self.start_s + (0.0 if self.move is None else self.move.call.pause_s)


def place(
    call: CallToPlace, nodes: Sequence[NodeReport], held: Mapping[str, int] | None = None
) -> PlacedCall | Nowhere:
    """The best of all candidates. ``nodes``: those that are alive. ``held``: tokens of the context by node, where that
    is known already; else it is looked up in the reports.
    """
    return _Search(call, nodes, held).best()


class _Search:
    def __init__(self, call: CallToPlace, nodes: Sequence[NodeReport], held: Mapping[str, int] | None) -> None:
        self._call, self._nodes = call, nodes
        self._by_name = {node.name: node for node in nodes}
        if held is None:
            held = {node.name: n for node in nodes if call.chain and (n := node.contexts.held(call.chain))}
        self._held = {name: min(n, call.tokens) for name, n in held.items()}
        holders = (name for name in self._held if name in self._by_name)
        self._sources = sorted(holders, key=lambda name: (-self._held[name], name))[:MOST_SOURCES]

    def best(self) -> PlacedCall | Nowhere:
        found = [placed for node in self._nodes if (placed := self._serve(node)) is not None]
        best = min(found, key=_order, default=None)
        for node in self._nodes:
            for placed in self._in_place_of(node, best):
                if best is None or _order(placed) < _order(best):
                    best = placed
        return self._why() if best is None else best

    # -- serve here, or load there

    def _serve(self, node: NodeReport) -> PlacedCall | None:
        if _loaded(node, self._call.model) or self._call.model_bytes <= node.free_bytes:
            return self._at(node, node.queue_s)
        return self._at(node, node.drain_s) if self._call.model_bytes <= node.total_bytes else None

    def _at(self, node: NodeReport, wait_s: float, move: CallMove | None = None) -> PlacedCall | None:
        """There, if it waits for so long; None if it cannot be there."""
        call = self._call
        rate, load_s = node.rate(call.model, call.model_bytes), load_seconds(node, call.model, call.model_bytes)
        if not rate or load_s is None or (context := self._context(node, rate)) is None:
            return None
        tier = node.models[call.model].tier
        return PlacedCall(node.name, tier, wait_s, load_s, context, call.new_tokens / rate, move)

    def _context(self, node: NodeReport, rate: float) -> ContextPlan | None:
        """The soonest way to have the context in cells there; None if its tokens do not come there."""
        call, tokens_s = self._call, 0.0
        if call.owner and call.owner != node.name:
            owner = self._by_name.get(call.owner)
            link = None if owner is None else owner.links.get(node.name)
            if link is None:
                return None
            tokens_s = link(call.tokens * TOKEN_BYTES)
        elif call.owner and not call.tokens:
            return ContextPlan()
        here = self._held.get(node.name, 0)
        read_s, compute_s = node.read(here * call.token_bytes), here / rate
        reads = here > 0 and read_s <= compute_s
        front_s = tokens_s + (read_s if reads else compute_s)
        plans = [self._plan(front_s, here, reads, 0, (call.tokens - here) / rate, "")]
        for name in self._sources:
            link = self._by_name[name].links.get(node.name)
            if name != node.name and link is not None and (n := self._held[name] - here) > 0:
                rest_s = link(n * call.token_bytes) + (call.tokens - here - n) / rate
                plans.append(self._plan(front_s, here, reads, n, rest_s, name))
        return min(plans, key=lambda plan: (plan.seconds, plan.source))

    def _plan(self, front_s: float, here: int, reads: bool, brought: int, rest_s: float, source: str) -> ContextPlan:
        recomputed = self._call.tokens - brought - (here if reads else 0)
        return ContextPlan(front_s + rest_s, here if reads else 0, brought, recomputed, source)

    # -- move a call, and serve in its place

    def _in_place_of(self, node: NodeReport, best: PlacedCall | None) -> Iterator[PlacedCall]:
        """All such candidates on a node, but for those that cannot be better than ``best``."""
        for victim in node.movable:
            room = node.free_bytes + victim.frees_bytes
            if not _loaded(node, self._call.model) and self._call.model_bytes > room:
                continue
            at_once = self._at(node, victim.wait_s, CallMove(victim, "", 0.0))
            if at_once is None:
                continue
            spare_s = float("inf") if best is None else best.cost_s - at_once.cost_s
            for to in self._nodes:
                if to.name == node.name or to.queue_s > spare_s:
                    continue
                seconds = move_seconds(victim, node, to)
                if seconds is not None and seconds <= spare_s:
                    placed = self._at(node, victim.wait_s, CallMove(victim, to.name, seconds))
                    if placed is not None:
                        yield placed

    def _why(self) -> Nowhere:
        call = self._call
        able = [n for n in self._nodes if n.rate(call.model, call.model_bytes) and _can_load(n, call)]
        if not able:
            return Nowhere.NO_MODEL
        roomy = any(_loaded(n, call.model) or call.model_bytes <= n.total_bytes for n in able)
        return Nowhere.NO_TOKENS if roomy else Nowhere.NO_ROOM


def load_seconds(node: NodeReport, model: str, model_bytes: int) -> float | None:
    """What loading the model there takes; 0 if it is loaded, None if it cannot be."""
    here = node.models.get(model)
    if here is None:
        return None
    if here.tier is ModelTier.LOADED:
        return 0.0
    cost = node.loads.get(here.tier)
    return None if cost is None else cost(model_bytes)


def move_seconds(victim: MovableCall, source: NodeReport, to: NodeReport) -> float | None:
    """Seconds until a call that runs at ``source`` can go on at ``to``: its turn there, its model, and its context by
    the faster way. None if it cannot.
    """
    link, rate = source.links.get(to.name), to.rate(victim.model, victim.model_bytes)
    load_s = load_seconds(to, victim.model, victim.model_bytes)
    if link is None or not rate or load_s is None:
        return None
    if not _loaded(to, victim.model) and victim.model_bytes > to.free_bytes:  # it will not wait for calls there to end
        return None
    context_s = min(link(victim.chunk_bytes), victim.tokens / rate)
    return to.queue_s + load_s + link(victim.tokens * TOKEN_BYTES) + context_s


def _loaded(node: NodeReport, model: str) -> bool:
    here = node.models.get(model)
    return here is not None and here.tier is ModelTier.LOADED


def _can_load(node: NodeReport, call: CallToPlace) -> bool:
    return load_seconds(node, call.model, call.model_bytes) is not None


def _order(placed: PlacedCall) -> tuple[float, bool, bool, str, str, str]:
    move = placed.move
    moved = ("", "") if move is None else (move.call.name, move.to)
    return (placed.cost_s, move is not None, bool(placed.context.source), placed.node, *moved)

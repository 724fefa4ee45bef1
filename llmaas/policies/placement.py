"""Which node serves a call: the one where it is expected to start soonest.

Law: pure, exact among its candidates, and deterministic: of equal ones that which moves nothing, then the first by
name.

    start = wait + load (q + n/b) + the context (read here | brought over a link | recomputed) + prefill of what is new

The candidates are those of ServerlessLLM (arXiv 2401.14351, section 6): serve where the model is, load it elsewhere, or
move a call that is in the way to another node and serve in its place. What it leaves out is the context, which costs as
much as a model does: 3,000 tokens are 20 MB over a link, or half a minute of a small board's work. That a call goes
where its context is (session affinity) is no rule here; it falls out of the sum, and so does when to give it up.

Two things count that are not the call's own. A call that is moved waits for its pause: these seconds count as the new
one's do. And a model that is loaded stays for later calls, so that one call is charged with a part of loading it only.
Charged with all of it, calls queue where the model is, the only copy is busy in each burst, and the burst waits for
cold loads: on the traces of ``bench.cluster`` p99 was nearly twice as long.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from llmaas.frozen import frozen
from llmaas.policies.node_report import CallToPlace, ModelTier, MovableCall, NodeReport
from llmaas.records import TOKEN_BYTES

MOST_SOURCES = 8
"""Nodes that chunks may come from, those that hold most first. All nodes of an app may hold its first chunks."""


LOAD_SHARE = 0.5
"""The part of loading a model that the call is charged with (docs/cluster.md has others)."""


class Nowhere(enum.Enum):
    """Why no node can serve a call."""

    NO_MODEL = "no node has the model or can fetch and run it"
    NO_ROOM = "no node has so much memory for models"
    NO_TOKENS = "no node that could serve it reaches the one that owns the context"


@frozen
class ContextPlan:
    """How the tokens of a context come into a node's cells, front first: read, brought from ``source``, computed."""

    seconds: float = 0.0
    read: int = 0
    brought: int = 0
    recomputed: int = 0
    source: str = ""


@frozen
class CallMove:
    """A call that makes room: it goes on at the node ``to`` after ``seconds``; meanwhile it goes on where it is."""

    call: MovableCall
    to: str
    seconds: float


@frozen
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
    later_s: float = 0.0
    """Seconds of loading that later calls are charged with."""

    @property
    def start_s(self) -> float:
        moved = 0.0 if self.move is None else self.move.seconds
        return moved + self.wait_s + self.load_s + self.context.seconds + self.prefill_s

    @property
    def cost_s(self) -> float:
        """What is minimised: seconds until it starts, without what loading is worth to later calls, and those that it
        makes another call wait.
        """
        return self.start_s - self.later_s + (0.0 if self.move is None else self.move.call.pause_s)


def place(
    call: CallToPlace,
    nodes: Sequence[NodeReport],
    held: Mapping[str, int] | None = None,
    *,
    now: float = 0.0,
    only: Collection[str] | None = None,
    load_share: float = LOAD_SHARE,
) -> PlacedCall | Nowhere:
    """The best of all candidates. ``nodes``: those that are alive. ``held``: tokens of the context by node, where that
    is known already; else it is looked up in the reports. ``now``: on the clock of ``NodeReport.at``. ``only``: the
    nodes that may serve; the others still give chunks and take calls that are moved.
    """
    return _Search(call, nodes, held, now, only, load_share).best()


class _Option(NamedTuple):
    """A node that can serve the call. Sorted by what is sure: seconds without those of the context."""

    sure_s: float
    name: str
    node: NodeReport
    rate: float
    wait_s: float
    """Infinite if the node has no room for the model unless a call is moved."""
    load_s: float
    own_s: float
    """What the call is charged with of loading the model, and computing what is new."""
    begins_s: float
    """When it was reported: until loading could begin, or is done."""


class _Way(NamedTuple):
    """How a context comes to a node. Of equal ones the first by source: none, then by name."""

    seconds: float
    source: str = ""
    reads: bool = False
    brought: int = 0


class _Candidate(NamedTuple):
    """Compared in this order, up to ``moved``."""

    cost_s: float
    moves: bool
    brings: bool
    name: str
    moved: tuple[str, str]
    option: _Option
    way: _Way
    move: CallMove | None


class _Search:
    """Branch and bound: a candidate is looked into only where what is sure of its cost is no more than the best's. With
    100 nodes most of a decision is what is sure; the result is made of the best one alone.
    """

    def __init__(
        self,
        call: CallToPlace,
        nodes: Sequence[NodeReport],
        held: Mapping[str, int] | None,
        now: float,
        only: Collection[str] | None,
        load_share: float,
    ) -> None:
        self._call, self._nodes, self._now, self._share = call, nodes, now, load_share
        self._may = nodes if only is None else [node for node in nodes if node.name in only]
        self._by_name = {node.name: node for node in nodes}
        if held is None:
            held = {node.name: n for node in nodes if call.chain and (n := node.contexts.held(call.chain))}
        self._held = {name: min(n, call.tokens) for name, n in held.items()}
        holders = (name for name in self._held if name in self._by_name)
        self._sources = sorted(holders, key=lambda name: (-self._held[name], name))[:MOST_SOURCES]
        self._refuges: dict[tuple[str, int], list[tuple[float, str, NodeReport, float]]] = {}
        self._best: _Candidate | None = None
        self._limit = sys.float_info.max
        """No candidate that costs more is of interest."""

    def best(self) -> PlacedCall | Nowhere:
        # Those that hold the context are likely, and bound the others.
        options = sorted(self._options(), key=lambda option: (not self._has_context(option.name), option.sure_s))
        for option in options:
            if option.sure_s <= self._limit and (way := self._way(option)) is not None:
                self._offer(option, way, option.sure_s + way.seconds, None)
        for option in options:  # where it need not wait, nobody is in its way
            if option.node.movable and option.wait_s > 0 and option.own_s <= self._limit:
                self._in_place_of(option)
        return self._why() if self._best is None else self._placed(self._best)

    def _has_context(self, node: str) -> bool:
        return node in self._held or node == self._call.owner

    def _offer(self, option: _Option, way: _Way, cost_s: float, move: CallMove | None) -> None:
        if cost_s > self._limit:
            return
        moved = ("", "") if move is None else (move.call.name, move.to)
        found = _Candidate(cost_s, move is not None, bool(way.source), option.name, moved, option, way, move)
        if self._best is None or found[:5] < self._best[:5]:
            self._best, self._limit = found, cost_s

    def _left(self, node: NodeReport, seconds: float) -> float:
        """What is left by now of seconds that it reported."""
        return max(0.0, seconds + node.at - self._now)

    # -- serve here, or load there

    def _options(self) -> Iterator[_Option]:
        call = self._call
        for node in self._may:
            ready = _ready(node, call.model, call.model_bytes)
            if ready is None:
                continue
            rate, load_s, begins_s, roomy = ready
            when_empty_s = node.drain_s if call.model_bytes <= node.total_bytes else math.inf
            wait_s = self._left(node, max(begins_s, node.queue_s if roomy else when_empty_s))
            own_s = load_s * self._share + call.new_tokens / rate
            yield _Option(wait_s + own_s, node.name, node, rate, wait_s, load_s, own_s, begins_s)

    def _way(self, option: _Option) -> _Way | None:
        """The soonest way to have the context in cells there; None if its tokens do not come there."""
        call, name, tokens_s = self._call, option.name, 0.0
        if call.owner and call.owner != name:
            owner = self._by_name.get(call.owner)
            link = None if owner is None else owner.links.get(name)
            if link is None:
                return None
            tokens_s = link(call.tokens * TOKEN_BYTES)
        here = self._held.get(name, 0)
        front_s, reads = here / option.rate, False
        if here and (read_s := option.node.read(here * call.token_bytes)) <= front_s:
            front_s, reads = read_s, True
        front_s += tokens_s
        best = _Way(front_s + (call.tokens - here) / option.rate, "", reads)
        for source in self._sources:
            n = self._held[source] - here
            if n <= 0:
                break
            if (link := self._by_name[source].links.get(name)) is not None:
                seconds = front_s + link(n * call.token_bytes) + (call.tokens - here - n) / option.rate
                if (seconds, source) < (best.seconds, best.source):
                    best = _Way(seconds, source, reads, n)
        return best

    # -- move a call, and serve in its place

    def _in_place_of(self, option: _Option) -> None:
        """All such candidates on a node, but for those that cannot be better than the best so far."""
        node, way = option.node, None
        loaded = node.models[self._call.model].tier is ModelTier.LOADED
        lacks = 0 if loaded else self._call.model_bytes - node.free_bytes
        for victim in node.movable:
            if lacks > victim.frees_bytes:
                continue
            sure_s = self._wait_without(victim, option) + option.own_s + victim.pause_s
            if sure_s > self._limit:
                continue
            way = way or self._way(option)
            if way is None:
                return
            sure_s += way.seconds
            for ready_s, name, to, rate in self._refuges_of(victim):
                if sure_s + ready_s > self._limit:
                    break
                link = node.links.get(name)
                if link is None or to is node:
                    continue
                context_s = min(link(victim.chunk_bytes), victim.tokens / rate)
                seconds = ready_s + link(victim.tokens * TOKEN_BYTES) + context_s
                self._offer(option, way, sure_s + seconds, CallMove(victim, name, seconds))

    def _wait_without(self, victim: MovableCall, option: _Option) -> float:
        return self._left(option.node, max(option.begins_s, victim.wait_s))

    def _refuges_of(self, victim: MovableCall) -> list[tuple[float, str, NodeReport, float]]:
        """Nodes that a call could go to, by when it would have its turn and its model there. It waits for no room."""
        key = victim.model, victim.model_bytes
        found = self._refuges.get(key)
        if found is None:
            found = self._refuges[key] = []
            for node in self._nodes:
                ready = _ready(node, *key)
                if ready is not None and ready[3]:
                    wait_s = self._left(node, max(ready[2], node.queue_s))
                    found.append((wait_s + ready[1], node.name, node, ready[0]))
            found.sort(key=lambda refuge: refuge[:2])
        return found

    # -- the result

    def _placed(self, best: _Candidate) -> PlacedCall:
        call, option, way, move = self._call, best.option, best.way, best.move
        read = self._held.get(option.name, 0) if way.reads else 0
        context = ContextPlan(way.seconds, read, way.brought, call.tokens - read - way.brought, way.source)
        wait_s = option.wait_s if move is None else self._wait_without(move.call, option)
        return PlacedCall(
            option.name,
            option.node.models[call.model].tier,
            wait_s,
            option.load_s,
            context,
            call.new_tokens / option.rate,
            move,
            option.load_s * (1 - self._share),
        )

    def _why(self) -> Nowhere:
        options = list(self._options())
        if not options:
            return Nowhere.NO_MODEL
        return Nowhere.NO_ROOM if all(math.isinf(option.wait_s) for option in options) else Nowhere.NO_TOKENS


def _ready(node: NodeReport, model: str, model_bytes: int) -> tuple[float, float, float, bool] | None:
    """Tokens/s of a prompt, seconds of loading, seconds until that can begin or is done, and whether there is room now;
    None if the model cannot run there.
    """
    here = node.models.get(model)
    if here is None or not (rate := here.prefill_rate or node.compute_rate / max(1, model_bytes)):
        return None
    if here.tier is ModelTier.LOADED:
        return rate, 0.0, here.ready_s, True
    cost = node.loads.get(here.tier)
    return None if cost is None else (rate, cost(model_bytes), node.loading_s, model_bytes <= node.free_bytes)

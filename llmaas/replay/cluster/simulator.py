"""A trace of calls on a cluster, in virtual time: no model, no network and no I/O.

Law: the very policy that places calls decides here; only the prices are invented, and they are all in
``replay.cluster.profiles`` and ``replay.prices``. Engines, disks and links each do one job after another; an answer
takes a lane until its end. The placer sees reports: of a node that has changed, at most every ``REPORT_S`` seconds,
and every ``AGAIN_S`` of one where calls run.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

from llmaas.policies.node_report import CallToPlace, ModelTier
from llmaas.policies.node_table import NodeTable
from llmaas.policies.placement import Nowhere, PlacedCall
from llmaas.records import TOKEN_BYTES
from llmaas.replay.cluster.job import ClusterJob, ClusterReport, ClusterTally
from llmaas.replay.cluster.node import LINK_S, PAUSE_S, ClusterNode
from llmaas.replay.cluster.placers import ClusterView, Placer, Preempt
from llmaas.replay.cluster.profiles import ClusterModel, NodeProfile
from llmaas.replay.cluster.workload import ClusterCall, ClusterContext
from llmaas.replay.timeline import Timeline

REPORT_S, AGAIN_S = 0.1, 2.0
_ANSWER, _WEIGHT = 128.0, 0.02
"""Tokens of an answer before any was seen; what each further one counts in their mean."""


class ClusterReplay:
    """Runs one trace, once: make it, ``run`` it."""

    def __init__(self, profiles: Sequence[NodeProfile], models: Sequence[ClusterModel], placer: Placer) -> None:
        by_name = {model.name: model for model in models}
        names = [f"n{i:04}" for i in range(len(profiles))]
        everyone = frozenset(names)
        self._nodes = {
            name: ClusterNode(name, profile, by_name, everyone) for name, profile in zip(names, profiles, strict=True)
        }
        self._able = {m: tuple(n for n in self._nodes.values() if m in n.models) for m in by_name}
        self._placer, self._table, self._time = placer, NodeTable(), Timeline()
        self._contexts: dict[str, ClusterContext] = {}
        self._prefixes: set[str] = set()
        """Those that some context has."""
        self._queued: dict[str, list[ClusterJob]] = {}
        """By context: its calls that wait for its earlier ones, the first of which is being served."""
        self._reported = dict.fromkeys(names, -REPORT_S)
        self._reporting: dict[str, float] = {}
        """When nodes will report."""
        self._numbers = itertools.count(1)
        self._by_number: dict[int, ClusterJob] = {}
        self._answer = _ANSWER
        self.tally = ClusterTally()

    def run(self, trace: Sequence[ClusterCall]) -> ClusterReport:
        """All calls, to the end of the last answer."""
        jobs: list[ClusterJob] = []
        for node in self._nodes.values():
            self._tell_at(node, 0.0)
        for call in trace:
            self._time.at(call.t, lambda c=call: jobs.append(self._arrive(c)))  # type: ignore[misc]
        self._time.run()
        return ClusterReport(tuple(jobs), self.tally)

    def check(self) -> list[str]:
        """What is wrong after a run; nothing if all books balance."""
        problems = [f"{name} still has calls" for name, n in self._nodes.items() if n.running or n.waiting or n.pending]
        problems += [f"{name} has users of a model" for name, n in self._nodes.items() if any(n.users.values())]
        for name, node in self._nodes.items():
            if sum(node.loaded.values()) > node.profile.memory or sum(node.parked.values()) > node.profile.cache:
                problems.append(f"{name} has more models than fit")
            held = [c.kept for c in self._contexts.values() if c.owner == name]
            if node.marks != Counter(mark for kept in held for mark in kept):
                problems.append(f"{name} does not have the marks of its contexts")
        if len(self._table.marks) != sum(len(node.marks) for node in self._nodes.values()):
            problems.append("the table does not have the marks of all nodes")
        if any(queue for queue in self._queued.values()):
            problems.append("a call was never served")
        return problems

    # -- a call comes

    def _arrive(self, call: ClusterCall) -> ClusterJob:
        context = self._contexts.get(call.context)
        if context is None:
            context = ClusterContext(call.context, call.prefix, call.prefix_tokens)
            self._contexts[call.context] = context
        job = ClusterJob(next(self._numbers), call, context, self._time.now, left=call.generate)
        self._by_number[job.number] = job
        queue = self._queued.setdefault(call.context, [])
        queue.append(job)
        if len(queue) == 1:
            self._place(job)
        return job

    def _place(self, job: ClusterJob) -> None:
        view = ClusterView(self._time.now, self._table, self._nodes, self._able)
        job.shared = job.call.prefix_tokens if not job.context.owner and job.call.prefix in self._prefixes else 0
        asked = _asked(job)
        choice = self._placer.choose(asked, view)
        if isinstance(choice, Nowhere):
            self.tally.refused += 1
            self._next_of_context(job)
            return
        if isinstance(choice, Preempt):
            choice = self._preempt(choice)
        self._table.placed(asked, choice, self._time.now)
        node = self._nodes[choice.node]
        job.plan = choice.context
        if choice.move is not None:
            self._make_way(choice, node)
            node.waiting.appendleft(job)
        else:
            node.waiting.append(job)
        self._admit(node)

    def _preempt(self, choice: Preempt) -> PlacedCall:
        """Stop the victim: what it has of its answer is lost, and it is placed anew."""
        victim, node = choice.victim, self._nodes[choice.placed.node]
        self._leave(victim, node)
        victim.preempted, victim.left = victim.preempted + 1, victim.call.generate
        self.tally.preemptions += 1
        self._time.at(self._time.now, lambda: self._place(victim))
        return choice.placed

    def _make_way(self, choice: PlacedCall, node: ClusterNode) -> None:
        """Have a place made ready for the call that is to move."""
        assert choice.move is not None
        victim = self._by_number[int(choice.move.call.name)]
        to = self._nodes[choice.move.to]
        if victim not in node.running or victim.guest_of is not None:
            return  # it has ended since that node reported
        guest = ClusterJob(next(self._numbers), victim.call, victim.context, self._time.now, guest_of=victim)
        to.waiting.append(guest)
        self._admit(to)

    # -- a node serves it

    def _admit(self, node: ClusterNode) -> None:
        """Calls that wait there begin, in order, as long as there are lanes and room."""
        while node.waiting and node.has_lane and node.has_room(node.waiting[0].call.model):
            self._begin(node, node.waiting.popleft())
        self._changed(node)

    def _begin(self, node: ClusterNode, job: ClusterJob) -> None:
        node.running[job] = None
        model = job.call.model
        loaded = self._load(node, model)
        job.token_s = node.profile.decode_token(model)
        if job.guest_of is not None:
            ready = self._bring_call(node, job.guest_of, loaded)
            self._later(job, ready, lambda: self._arrive_moved(node, job))
            return
        there = self._bring_context(node, job, loaded)
        new_s = (job.call.prompt - job.shared) * node.profile.prefill_token(model)
        compute_s = new_s + job.plan.recomputed * node.profile.prefill_token(model)
        job.decodes_from = there + compute_s  # at the soonest
        node.pending[job] = there, compute_s
        self._later(job, there, lambda: self._compute(node, job, new_s))

    def _later(self, job: ClusterJob, when: float, act: Callable[[], None]) -> None:
        """What is foreseen for a call that is on a node happens, unless it has left that by then."""
        run = job.run
        self._time.at(when, lambda: act() if job.run == run else None)

    def _compute(self, node: ClusterNode, job: ClusterJob, new_s: float) -> None:
        """All that comes is there: the engine computes the rest, when it has done what was ready before."""
        _, compute_s = node.pending.pop(job)
        job.decodes_from = node.compute(self._time.now, compute_s)
        if job.ready is None:
            job.ready = job.decodes_from - new_s
        self._later(job, job.decodes_from, lambda: self._first_token(node, job))
        self._later(job, job.decodes_from + job.left * job.token_s, lambda: self._end(node, job))

    def _load(self, node: ClusterNode, model: ClusterModel) -> float:
        """When the model is loaded there."""
        now = self._time.now
        tier, seconds = node.take(model)
        if tier is ModelTier.LOADED:
            return max(now, node.ready_at[model.name])
        self.tally.loads += 1
        self.tally.load_bytes += model.nbytes
        node.disk_free = max(node.disk_free, now) + seconds  # one load after another, wherever from
        node.ready_at[model.name] = node.disk_free
        return node.disk_free

    def _bring_context(self, node: ClusterNode, job: ClusterJob, loaded: float) -> float:
        """When what its plan reads and brings is there."""
        plan, token, ready = job.plan, job.call.model.token_bytes, loaded
        owner = job.context.owner
        if owner and owner != node.name:
            self.tally.contexts_moved += 1
            ready = max(ready, self._send(self._nodes[owner], job.context.tokens * TOKEN_BYTES))
        if plan.brought:
            ready = max(ready, self._send(self._nodes[plan.source], plan.brought * token))
        if plan.read:
            nbytes = plan.read * token
            self.tally.read_bytes += int(nbytes)
            ready = max(ready, node.read(self._time.now, nbytes) + nbytes / node.profile.machine.code)
        self.tally.recomputed += plan.recomputed
        return ready

    def _send(self, source: ClusterNode, nbytes: float) -> float:
        """Bytes go from a node to another; when they are there."""
        seconds = LINK_S + nbytes / source.profile.link
        source.link.observe(1.0, nbytes, seconds)
        source.link_free = max(source.link_free, self._time.now) + seconds
        self.tally.context_bytes += int(nbytes)
        return source.link_free

    def _first_token(self, node: ClusterNode, job: ClusterJob) -> None:
        if job.started is None:
            job.started = self._time.now
        self._changed(node)  # it can be moved from now on

    def _end(self, node: ClusterNode, job: ClusterJob) -> None:
        self._leave(job, node)
        job.done = self._time.now
        self._answer += _WEIGHT * (job.call.generate - self._answer)
        self._keep(node, job)
        self._next_of_context(job)
        self._admit(node)

    def _leave(self, job: ClusterJob, node: ClusterNode) -> None:
        job.run += 1
        node.running.pop(job, None)
        node.pending.pop(job, None)
        node.give(job.call.model)

    def _keep(self, node: ClusterNode, job: ClusterJob) -> None:
        """The context is that node's, with what it has now."""
        context, old = job.context, job.context.kept
        before = self._nodes.get(context.owner)
        context.grow(context.tokens + job.call.prompt + job.call.generate)
        if before is not None and before is not node:
            self._mark(before, frozenset(), old)
            old = frozenset()
        self._mark(node, context.kept - old, old - context.kept)
        context.owner = node.name
        self._prefixes.add(context.prefix)

    def _mark(self, node: ClusterNode, added: frozenset[int], removed: frozenset[int]) -> None:
        """Several contexts of a node may share marks: what it tells of is the first and the last of them."""
        new = [mark for mark in added if not node.marks[mark]]
        node.marks.update(added)
        node.marks.subtract(removed)
        gone = [mark for mark in removed if not node.marks[mark]]
        for mark in gone:
            del node.marks[mark]
        self._table.holds(node.name, new, gone)

    def _next_of_context(self, job: ClusterJob) -> None:
        queue = self._queued[job.call.context]
        queue.remove(job)
        if queue:
            queue[0].submitted = self._time.now  # nobody asks on before the answer is there
            self._place(queue[0])

    # -- a call that runs moves

    def _bring_call(self, node: ClusterNode, victim: ClusterJob, loaded: float) -> float:
        """When all that the call has is there: sent or computed, whichever is sooner."""
        model = victim.call.model
        tokens, source = victim.tokens_at(self._time.now), self._node_of(victim) or node
        link_s = LINK_S + tokens * model.token_bytes / source.profile.link
        compute_s = tokens * node.profile.prefill_token(model)
        if link_s <= compute_s:
            return max(loaded, self._send(source, tokens * (model.token_bytes + TOKEN_BYTES)))
        self.tally.recomputed += tokens
        return node.compute(max(loaded, self._send(source, tokens * TOKEN_BYTES)), compute_s)

    def _node_of(self, job: ClusterJob) -> ClusterNode | None:
        """Where it runs."""
        return next((node for node in self._nodes.values() if job in node.running), None)

    def _arrive_moved(self, node: ClusterNode, guest: ClusterJob) -> None:
        """Its place is ready: it goes on here, if it has not ended meanwhile."""
        assert guest.guest_of is not None
        victim, now = guest.guest_of, self._time.now
        self._leave(guest, node)
        if (source := self._node_of(victim)) is not None:
            victim.left = victim.left_at(now)
            self._leave(victim, source)
            node.running[victim] = None
            node.users[victim.call.model.name] += 1
            victim.token_s, victim.decodes_from = guest.token_s, now + PAUSE_S
            victim.moved += 1
            self.tally.calls_moved += 1
            ends = victim.decodes_from + victim.left * victim.token_s
            self._later(victim, ends, lambda: self._end(node, victim))
            self._admit(source)
        self._admit(node)

    # -- what nodes tell

    def _changed(self, node: ClusterNode) -> None:
        """It reports soon, but not more often than it may."""
        self._tell_at(node, max(self._time.now, self._reported[node.name] + REPORT_S))

    def _tell_at(self, node: ClusterNode, when: float) -> None:
        if when < self._reporting.get(node.name, math.inf):
            self._reporting[node.name] = when
            self._time.at(when, lambda: self._tell(node))

    def _tell(self, node: ClusterNode) -> None:
        if self._reporting.get(node.name) != self._time.now:
            return  # it has reported sooner
        del self._reporting[node.name]
        self._reported[node.name] = self._time.now
        if node.running:
            self._tell_at(node, self._time.now + AGAIN_S)
        report = node.report(self._time.now, self._answer, movable=self._placer.moves)
        self._table.report(report, self._time.now)


def _asked(job: ClusterJob) -> CallToPlace:
    call, context, model = job.call, job.context, job.call.model
    chain = context.chain if context.owner else context.prefix_chain()
    return CallToPlace(
        model.name, model.nbytes, call.prompt - job.shared, context.tokens + job.shared, chain, model.token_bytes,
        context.owner,
    )  # fmt: skip

"""A node of a replayed cluster: models in its memory, calls that run and wait, one engine, one disk, one link.

Law: nothing is decided here but what every node does by itself: calls wait in order; a model that nobody uses makes
room for one that is called, the longest unused first, and stays parked as long as the cache has room. What loading and
links take is learnt (``LinearCost``), from guesses that are equal on all nodes and wrong on most.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from heapq import heapify, heapreplace

from llmaas.policies.linear_cost import LinearCost
from llmaas.policies.node_report import ModelHere, ModelTier, MovableCall, NodeReport, TransferCost
from llmaas.replay.cluster.job import ClusterJob
from llmaas.replay.cluster.profiles import ClusterModel, NodeProfile

_GUESSES = {ModelTier.MEMORY: (0.5, 2e-10), ModelTier.DISK: (0.5, 2e-9), ModelTier.AWAY: (0.5, 1e-8)}
"""q and seconds a byte, before anything was loaded."""
_LINK_GUESS = (1e-3, 1e-8)
LINK_S = 1e-3
"""Seconds before the first byte arrives, on a network at home (assumed)."""
PAUSE_S = 0.2
"""What the client of a call that moves sees (docs/results.md: p50 of ``bench.migration``)."""
_MOST_MOVABLE = 4


class Links(Mapping[str, TransferCost]):
    """The same to every other node: what they have in common is this node's own socket."""

    def __init__(self, names: frozenset[str], cost: TransferCost) -> None:
        self._names, self._cost = names, cost

    def __getitem__(self, name: str) -> TransferCost:
        if name not in self._names:
            raise KeyError(name)
        return self._cost

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class ClusterNode:
    """What it has and does; when things happen is for the simulator."""

    def __init__(
        self, name: str, profile: NodeProfile, models: Mapping[str, ClusterModel], others: frozenset[str]
    ) -> None:
        self.name, self.profile, self.others = name, profile, others
        self.models = {m.name: m for m in models.values() if m.nbytes <= profile.memory}
        self.loaded: OrderedDict[str, int] = OrderedDict()
        """Models in memory, the longest unused first."""
        self.parked: OrderedDict[str, int] = OrderedDict()
        self.ready_at: dict[str, float] = {}
        """When models that are in memory are, or were, loaded."""
        self.users: Counter[str] = Counter()
        self.running: dict[ClusterJob, None] = {}
        self.waiting: deque[ClusterJob] = deque()
        self.pending: dict[ClusterJob, tuple[float, float]] = {}
        """Calls that have a lane, but not all that is brought for them: when that will be there, and what the engine
        then computes, in seconds."""
        self.marks: Counter[int] = Counter()
        self.engine_free = self.disk_free = self.read_free = self.link_free = 0.0
        """When they have done what was given to them: ``disk`` with models, ``read`` with chunks."""
        self.link = LinearCost(*_LINK_GUESS)
        self.learnt = {tier: LinearCost(*guess) for tier, guess in _GUESSES.items()}
        self._here: dict[str, ModelHere] | None = None

    # -- models

    def tier(self, model: str) -> ModelTier:
        return (
            ModelTier.LOADED if model in self.loaded else ModelTier.MEMORY if model in self.parked else ModelTier.DISK
        )

    def has_room(self, model: ClusterModel) -> bool:
        """Whether it is loaded, or can be by unloading what nobody uses."""
        return model.name in self.loaded or model.nbytes <= self.free_bytes

    @property
    def free_bytes(self) -> int:
        return self.profile.memory - sum(n for name, n in self.loaded.items() if self.users[name])

    def frees(self, model: ClusterModel) -> int:
        """Bytes that can be had when one of its users leaves."""
        return model.nbytes if self.users[model.name] == 1 else 0

    @property
    def has_lane(self) -> bool:
        return len(self.running) < self.profile.lanes

    def take(self, model: ClusterModel) -> tuple[ModelTier, float]:
        """Have it loaded for one more user: where it was, and the seconds that it takes from there."""
        tier = self.tier(model.name)
        seconds = 0.0
        if tier is not ModelTier.LOADED:
            seconds = self.profile.load(tier)(model.nbytes)
            self.learnt[tier].observe(1.0, model.nbytes, seconds)
            self.parked.pop(model.name, None)
            self._make_room(model.nbytes)
            self._here = None
        self.loaded[model.name] = model.nbytes
        self.loaded.move_to_end(model.name)
        self.users[model.name] += 1
        return tier, seconds

    def give(self, model: ClusterModel) -> None:
        """One user less."""
        self.users[model.name] -= 1

    def _make_room(self, nbytes: int) -> None:
        used = sum(self.loaded.values())
        for name in [name for name in self.loaded if not self.users[name]]:
            if used + nbytes <= self.profile.memory:
                return
            size = self.loaded.pop(name)
            used -= size
            if size <= self.profile.cache:
                self.parked[name] = size
                while sum(self.parked.values()) > self.profile.cache:
                    self.parked.popitem(last=False)

    def read(self, now: float, nbytes: float) -> float:
        """Chunks are read from disk; when they are there. Beside a model that is being loaded they get half of it."""
        seconds = self.profile.storage.latency + nbytes / self.profile.storage.read
        self.read_free = max(self.read_free, now) + (2 * seconds if self.disk_free > now else seconds)
        return self.read_free

    def compute(self, now: float, seconds: float) -> float:
        """The engine computes for so long; when that is done."""
        self.engine_free = max(self.engine_free, now) + seconds
        return self.engine_free

    # -- what it tells

    def report(self, now: float, answer: float, *, movable: bool) -> NodeReport:
        """``answer``: tokens that an answer has in the mean, and so also those that are left of one, however long it
        is already. ``movable``: with calls that could be moved.
        """
        begins, engine_at = self._begins(now)
        ends = [max(begins.get(job, job.decodes_from), now) + answer * job.token_s for job in self.running]
        queue_s, drain_s = self._waits(now, ends, engine_at - now, answer)
        victims = tuple(self._movable(now, engine_at - now)) if movable and not self.waiting else ()
        costs = {tier: TransferCost.learnt(cost) for tier, cost in self.learnt.items()}
        read = TransferCost(self.profile.storage.latency, 1 / self.profile.storage.read + 1 / self.profile.machine.code)
        return NodeReport(
            self.name, self._models(now, begins), costs, read, queue_s, drain_s, max(0.0, self.disk_free - now),
            max(0, self.free_bytes), self.profile.memory, links=Links(self.others, TransferCost.learnt(self.link)),
            movable=victims,
        )  # fmt: skip

    def _begins(self, now: float) -> tuple[dict[ClusterJob, float], float]:
        """When calls that are pending will have been computed, and until when the engine is busy: gaps that are shorter
        than the work behind them are none, since what comes for a new call would not be there in time.
        """
        engine = busy = max(self.engine_free, now)
        begins = {}
        for job, (there, compute_s) in sorted(self.pending.items(), key=lambda item: (item[1][0], item[0].number)):
            short = busy == engine and there - busy < compute_s
            engine = begins[job] = max(engine, there) + compute_s
            busy = engine if short else busy
        return begins, busy

    def _models(self, now: float, begins: Mapping[ClusterJob, float]) -> Mapping[str, ModelHere]:
        if self._here is None:
            self._here = {
                name: ModelHere(self.tier(name), 1 / self.profile.prefill_token(model))
                for name, model in self.models.items()
            }
        ready = {name: self.ready_at[name] for name in self.loaded if self.ready_at[name] > now}
        for job, begin in begins.items():
            if job.call.model.name in ready:
                ready[job.call.model.name] = max(ready[job.call.model.name], begin)
        here = self._here
        return here | {
            name: ModelHere(here[name].tier, here[name].prefill_rate, at - now) for name, at in ready.items()
        }

    def _waits(self, now: float, ends: list[float], engine_s: float, answer: float) -> tuple[float, float]:
        """Seconds until a lane is free, and until all are."""
        lanes, floor = ends + [now] * (self.profile.lanes - len(ends)), now
        heapify(lanes)
        for job in self.waiting:  # in order: nobody begins before one that waits for room
            model = job.call.model
            floor = max(floor, lanes[0] if self.has_room(model) else max(lanes))
            work_s = job.plan.seconds + job.call.prompt * self.profile.prefill_token(model)
            if model.name not in self.loaded:
                work_s += self.learnt[self.tier(model.name)](1.0, model.nbytes)
            engine_s += work_s
            heapreplace(lanes, floor + work_s + answer * self.profile.decode_token(model))
        return max(lanes[0] - now, floor - now, engine_s), max(max(lanes) - now, engine_s)

    def _movable(self, now: float, engine_s: float) -> Iterator[MovableCall]:
        """Calls that decode, if it has no lane or no memory for another."""
        if self.has_lane and self.free_bytes == self.profile.memory:
            return
        decoding = [job for job in self.running if job.guest_of is None and now >= job.decodes_from and not job.moved]
        for job in decoding[:_MOST_MOVABLE]:
            model, tokens = job.call.model, job.tokens_at(now)
            nbytes, frees = int(tokens * model.token_bytes), self.frees(model)
            yield MovableCall(str(job.number), model.name, model.nbytes, tokens, nbytes, frees, engine_s, PAUSE_S)

"""Apps that ask again as soon as they were answered, in virtual time: what the scheduler makes of each.

The engine takes ``STEP_S`` for a step and ``TOKEN_S`` for each of its tokens; everything else a planner asks for takes
``OTHER_S``. A step that is aborted ends at once.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from dataclasses import dataclass, field

from llmaas.planner import actions as act
from llmaas.planner import events as ev
from llmaas.records import AppId, RequestId
from tests.support.planner_world import World, settings

STEP_S, TOKEN_S, OTHER_S = 0.008, 0.00025, 0.0002
SETTINGS = {
    "n_cells": 8192,
    "ctx_limit": 4096,
    "n_seqs": 40,
    "max_batch": 512,
    "prefill_slice": 256,
    "max_running": 8,
    "pool_bytes": 1 << 30,
}


@dataclass(frozen=True)
class AppLoad:
    """What an app asks for: ``calls`` at once, each of so many tokens (least, most) and so many to generate."""

    calls: int
    prompt: tuple[int, int]
    answer: int
    pause_s: float = 0.0
    """Seconds from an answer to the next question, in the mean."""


@dataclass
class Outcomes:
    """What came of it. Times to first tokens are in seconds."""

    seconds: float = 0.0
    tokens: int = 0
    """Read and generated."""
    first_tokens: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def quantile(self, q: float, app: str = "") -> float:
        """Of the times to the first tokens of an app; of all without one."""
        found = sorted(t for name, times in self.first_tokens.items() if app in (name, "") for t in times)
        return found[min(len(found) - 1, int(q * len(found)))]


class ClosedLoop:
    """Runs loads until ``total`` calls have ended."""

    def __init__(self, loads: dict[str, AppLoad], seed: int, **changes: object) -> None:
        self._loads, self._rng = loads, random.Random(seed)
        self._world = World(settings(**{**SETTINGS, **changes}), random.Random(seed))
        self._world.tick = 0.0
        self._came: dict[RequestId, tuple[str, float]] = {}
        """Of each call: its app, and when it came."""
        self._answered: set[RequestId] = set()
        names = [app for app, load in loads.items() for _ in range(load.calls)]
        self._due = [(0.05 * self._rng.random(), app) for app in names]
        """When calls come, and whose."""
        heapq.heapify(self._due)
        self._step_ends = 0, 0.0
        """The step that runs, and when it ends."""
        self.outcomes = Outcomes()

    def run(self, total: int) -> Outcomes:
        w, ended = self._world, set[RequestId]()
        while len(ended) < total:
            self._go_on()
            for request in [r for r in self._came if r in w.finished and r not in ended]:
                ended.add(request)
                w.close(w.calls[request][0])
                app = self._came[request][0]
                pause = self._loads[app].pause_s
                heapq.heappush(self._due, (w.now + (self._rng.expovariate(1 / pause) if pause else 0.0), app))
        self.outcomes.seconds = w.now
        self.outcomes.tokens += w.planner.tally.tokens_prefilled
        return self.outcomes

    def _go_on(self) -> None:
        """The next thing happens: an answer to the planner, the end of a step, or a call."""
        w = self._world
        step = next((action for action in w.due if isinstance(action, act.RunStep)), None)
        others = [i for i, action in enumerate(w.due) if not isinstance(action, act.RunStep | act.WakeAt)]
        if step is not None and self._step_ends[0] != step.step:
            n = sum(item.stop - item.start for item in step.items)
            self._step_ends = step.step, w.now + STEP_S + TOKEN_S * n
        if others and (step is None or w.now < self._step_ends[1]):
            w.now += OTHER_S
            w.answer_one(others[0])
        elif step is not None and (not self._due or self._due[0][0] >= self._step_ends[1]):
            w.now = max(w.now, self._step_ends[1])
            self._end(step)
        else:
            self._call()
            if step is not None and step.step in w.aborted:
                w.due.remove(step)
                w.send(ev.StepFailed(step.step, aborted=True))

    def _call(self) -> None:
        w = self._world
        when, app = heapq.heappop(self._due)
        w.now = max(w.now, when)
        load = self._loads[app]
        made = w.open(AppId(f"0/{app}"))
        request = w.call(made, self._rng.randint(*load.prompt), load.answer, priority=5)
        self._came[request] = app, w.now

    def _end(self, step: act.RunStep) -> None:
        w = self._world
        w.due.remove(step)
        drawn = []
        for item in step.items:
            w.cells[item.seq] = item.stop
            drawn.append(ev.Drawn.TOKEN if item.sample else ev.Drawn.NOTHING)
            if item.sample:
                w.ctxs[item.context].tokens.append(7)
                self.outcomes.tokens += 1
                if item.request not in self._answered:
                    self._answered.add(item.request)
                    app, came = self._came[item.request]
                    self.outcomes.first_tokens[app].append(w.now - came)
        w.send(ev.StepDone(step.step, tuple(drawn), 1))

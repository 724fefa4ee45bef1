"""The demo's story: load, take turns, all at once, compute again, restart.

Law: everything is measured on the one daemon that serves all apps, in one run; what is compared was done on an
idle daemon both times. Whatever was started is ended by ``Demo.close``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmaas.api.client import Client
from llmaas.cli.demo.crew import Crew, demo_environ
from llmaas.cli.demo.daemon import Daemon
from llmaas.cli.demo.measure import prefill_anew, tokens_by_app, tokens_by_tier, wait_idle
from llmaas.cli.demo.memory import MemoryWatch
from llmaas.cli.demo.plan import AppPlan, Plan
from llmaas.cli.demo.records import ALONE, PAIRED, RESTART, TOGETHER, Check, DemoFindings, DemoTurn, Pair, Prefill
from llmaas.cli.demo.schedule import schedule
from llmaas.cli.demo.view import View
from llmaas.clock import RealClock
from llmaas.kvchunks.store import master_key
from llmaas.kvchunks.store.store import Store

_RESTART_S = 6.0
"""What the restart at the end takes, about."""
_TURN_S = 0.6


class Demo:
    """One run. ``play`` it, read ``findings``, ``close`` it in any case."""

    def __init__(self, root: Path, model: Path, plan: Plan, view: View) -> None:
        environ = self._environ = demo_environ(root)
        self.plan = plan
        self.findings = DemoFindings()
        self._clock = RealClock()
        self._began = self._clock.now()
        self.memory = MemoryWatch(self._began)
        self._view = view
        self._daemon = Daemon(root, model, plan, environ)
        self._crew = Crew(self._daemon.socket, plan.seed, environ, view.text)
        self._asked = {app.app: 0 for app in plan.apps}
        self._tokens = {app.app: app.tokens_first for app in plan.apps}

    def close(self) -> None:
        """End everything at once; after ``play`` nothing runs any more."""
        self._crew.kill()
        self._daemon.kill()
        self.memory.close()

    def play(self) -> None:
        """The whole story. Raises MachineError if a process fails."""
        self._view.part(f"starting the daemon and {len(self.plan.apps)} apps")
        self._daemon.start()
        self.memory.watch(self._daemon.pid)
        for app in self.plan.apps:
            self._crew.start(app)
        self._crew.wait([app.app for app in self.plan.apps])
        with self._daemon.connect() as client:
            self._load(client)
            self._take_turns()
            self._all_at_once()
            wait_idle(client)
            self.findings.stats = client.stats()
            self.findings.tiers = tokens_by_tier(client)
            self._compare(client)
            wait_idle(client)
            before = tokens_by_app(client)
        self._crew.close()
        self._restart(before)

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return self._clock.now() - self._began

    # -- the parts ----------------------------------------------------------------------------

    def _load(self, client: Client) -> None:
        self._view.part("every app brings what it has seen so far; the model reads it for the first time")
        for app in self.plan.apps:
            wait_idle(client)
            self._view.busy(app.app, "reading its history")
            done = self._crew.ask(app.app, "begin")["done"]
            prefill = Prefill(app.app, self.seconds, done["n_tokens"], done["ttft_ms"] - done["queue_ms"], False)
            self.findings.prefills.append(prefill)
            self._view.prefill_ended(prefill)

    def _take_turns(self) -> None:
        self._view.part("the apps take turns; each finds its context where it was left, in CELLS, POOL or on DISK")
        least = len(self.plan.apps) * 3 // 2  # every app once, and some that come back soon
        for i, app in enumerate(schedule(self.plan)):
            if i >= least and self.seconds > self.plan.seconds - self._seconds_after_turns():
                break
            self._turn(ALONE, app)

    def _all_at_once(self) -> None:
        self._view.part("all apps call at once; whose context does not fit waits for its turn")
        apps = [app.app for app in self.plan.apps if self._left(app) > 1]
        for app in apps:
            self._view.busy(app, "waiting for its turn")
            self._crew.send(app, "turn")
        for _ in apps:
            self._record(TOGETHER, *self._crew.next())

    def _compare(self, client: Client) -> None:
        self._view.part("the same contexts computed again from their text, and switched back, on an idle daemon")
        for i, app in enumerate(self.plan.apps[-self.plan.n_compared :]):
            if i >= 3 and self.seconds > self.plan.seconds * 1.1 - _RESTART_S:
                break
            wait_idle(client)
            self._view.busy(app.app, "being computed again, for comparison")
            tokens, ms = prefill_anew(client, app.app)
            prefill = Prefill(app.app, self.seconds, tokens, ms, True)
            self.findings.prefills.append(prefill)
            self._view.prefill_ended(prefill)
            wait_idle(client)
            self.findings.pairs.append(Pair(prefill, self._turn(PAIRED, app.app)))

    def _restart(self, before: Mapping[str, int]) -> None:
        self._view.part("the daemon is stopped and started again on the same data; one app goes on where it was")
        self._stop("the daemon stopped when asked")
        self._daemon.forget_page_cache()
        began = self._clock.now()
        self._daemon.start()
        started = self._clock.now() - began
        self.memory.watch(self._daemon.pid)
        app = max((app for app in self.plan.apps if self._left(app)), key=lambda app: before[app.app])
        self._crew.start(app, self._asked[app.app])
        self._crew.wait([app.app])
        found = self._crew.ask(app.app, "find")
        with self._daemon.connect() as client:
            after = tokens_by_app(client)
        text = f"{len(after)} contexts, {sum(after.values())} tokens"
        self._check("every context outlived the restart", after == before, text)
        self._go_on(app.app, found["tokens"], started)
        self._crew.close()
        self._stop("the restarted daemon stopped when asked")
        data_dir = self._daemon.data_dir
        key = master_key.find(data_dir, master_key.FILE, self._environ, make=False)
        with Store(data_dir, master=key.key if key else None) as store:
            problems = store.check().problems
        self._check("the store is in order", not problems, "; ".join(problems) or "no problem found")

    def _go_on(self, app: str, tokens: int, started: float) -> None:
        """The first turn after the restart, of an app whose context has ``tokens``."""
        answer = self._take(RESTART, app)
        turn = self.findings.turns[-1]
        text = f"{turn.disk} of {tokens} tokens came from DISK, {turn.recomputed} were computed again"
        self._check("its chunks came back from disk", turn.disk > 0 and turn.recomputed == 0, text)
        self.findings.restart = {
            "app": app,
            "tokens": tokens,
            "start_s": started,
            "question": answer["question"],
            "answer": answer["text"],
            "switch_ms": turn.switch_ms,
            "ttft_ms": turn.ttft_ms,
        }

    # -- pieces of them -----------------------------------------------------------------------

    def _turn(self, part: str, app: str) -> DemoTurn:
        self._daemon.forget_page_cache()
        self._take(part, app)
        return self.findings.turns[-1]

    def _take(self, part: str, app: str) -> Mapping[str, Any]:
        self._view.busy(app, "switching")
        answer = self._crew.ask(app, "turn")
        self._record(part, app, answer)
        return answer

    def _record(self, part: str, app: str, answer: Mapping[str, Any]) -> None:
        self._asked[app] += 1
        turn = DemoTurn.of(part, app, self.seconds, answer["done"])
        self._tokens[app] = turn.tokens
        self.findings.turns.append(turn)
        self._view.turn_ended(turn, answer["text"])

    def _stop(self, check: str) -> None:
        code = self._daemon.stop()
        self._check(check, code == 0, f"exit code {code}")

    def _seconds_after_turns(self) -> float:
        """What comes after the turns, at the speed seen so far."""
        done = [p for p in self.findings.prefills if not p.again]
        per_token = sum(p.ms for p in done) / 1e3 / max(1, sum(p.tokens for p in done))
        compared = sum(self._tokens[app.app] for app in self.plan.apps[-self.plan.n_compared :])
        return compared * per_token + (len(self.plan.apps) + self.plan.n_compared) * _TURN_S + _RESTART_S

    def _left(self, app: AppPlan) -> int:
        """Questions that the app has not put yet."""
        return app.n_questions - self._asked[app.app]

    def _check(self, name: str, ok: bool, text: str) -> None:
        self.findings.checks.append(Check(name, ok, text))

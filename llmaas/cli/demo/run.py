"""The demo's story: load, take turns, all at once, compute again, restart.

Law: everything is measured on the one daemon that serves all apps, in one run; what is compared was done on an
idle daemon both times. Whatever was started is ended by ``Demo.close``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmaas.api.client import Client
from llmaas.cli.demo.crew import Crew, demo_environ
from llmaas.cli.demo.daemon import Daemon, MemoryWatch
from llmaas.cli.demo.plan import AppPlan, Plan, schedule
from llmaas.cli.demo.records import ALONE, PAIRED, RESTART, TOGETHER, Check, DemoFindings, DemoTurn, Pair, Prefill
from llmaas.cli.demo.view import View
from llmaas.clock import RealClock
from llmaas.errors import Internal, MachineError
from llmaas.kvchunks.store.store import Store
from llmaas.records import Message

_QUIET_S = 0.1
_SETTLE_S = 60.0
_RESTART_S = 6.0
"""What the restart at the end takes, about."""
_TURN_S = 0.6


class Demo:
    """One run. ``play`` it, read ``findings``, ``close`` it in any case."""

    def __init__(self, root: Path, model: Path, plan: Plan, view: View) -> None:
        environ = demo_environ(root)
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
            self._settle(client)
            self._look(client)
            self._compare(client)
            self._settle(client)
            before = {c.app.split("/")[1]: c.n_tokens for c in client.contexts(everyone=True)}
        self._crew.close()
        self._restart(before)

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return self._clock.now() - self._began

    # -- the parts

    def _load(self, client: Client) -> None:
        self._view.part("every app brings what it has seen so far; the model reads it for the first time")
        for app in self.plan.apps:
            self._settle(client)
            self._view.busy(app.app, "reading its history")
            done = self._crew.ask(app.app, "begin")["done"]
            prefill = Prefill(app.app, self.seconds, done["n_tokens"], done["ttft_ms"] - done["queue_ms"], False)
            self.findings.prefills.append(prefill)
            self._view.prefilled(prefill)

    def _take_turns(self) -> None:
        self._view.part("the apps take turns; each finds its context where it was left, in CELLS, POOL or on DISK")
        least = len(self.plan.apps) * 3 // 2  # every app once, and some that come back soon
        for i, app in enumerate(schedule(self.plan)):
            if i >= least and self.seconds > self.plan.seconds - self._rest_seconds():
                break
            self._turn(ALONE, app)

    def _all_at_once(self) -> None:
        self._view.part("all apps call at once; whose context does not fit waits for its turn")
        apps = [app.app for app in self.plan.apps if self._left(app) > 1]
        for app in apps:
            self._view.busy(app, "waiting for its turn")
            self._crew.send(app, "turn")
        for _ in apps:
            self._took(TOGETHER, *self._crew.next())

    def _compare(self, client: Client) -> None:
        self._view.part("the same contexts computed again from their text, and switched back, on an idle daemon")
        for i, app in enumerate(self.plan.apps[-self.plan.n_compared :]):
            if i >= 3 and self.seconds > self.plan.seconds * 1.1 - _RESTART_S:
                break
            self._settle(client)
            self._view.busy(app.app, "being computed again, for comparison")
            prefill = self._prefill_again(client, app)
            self.findings.prefills.append(prefill)
            self._view.prefilled(prefill)
            self._settle(client)
            self.findings.pairs.append(Pair(prefill, self._turn(PAIRED, app.app)))

    def _restart(self, before: Mapping[str, int]) -> None:
        self._view.part("the daemon is stopped and started again on the same data; one app goes on where it was")
        code = self._daemon.stop()
        self._check("the daemon stopped when asked", code == 0, f"exit code {code}")
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
            after = {c.app.split("/")[1]: c.n_tokens for c in client.contexts(everyone=True)}
        same = after == before
        self._check("every context outlived the restart", same, f"{len(after)} contexts, {sum(after.values())} tokens")
        answer = self._take(RESTART, app.app)
        turn = self.findings.turns[-1]
        text = f"{turn.disk} of {found['tokens']} tokens came from DISK, {turn.recomputed} were computed again"
        self._check("its chunks came back from disk", turn.disk > 0 and turn.recomputed == 0, text)
        self.findings.restart = {
            "app": app.app,
            "tokens": found["tokens"],
            "start_s": started,
            "question": answer["question"],
            "answer": answer["text"],
            "switch_ms": turn.switch_ms,
            "ttft_ms": turn.ttft_ms,
        }
        self._crew.close()
        code = self._daemon.stop()
        self._check("the restarted daemon stopped when asked", code == 0, f"exit code {code}")
        with Store(self._daemon.data_dir) as store:
            report = store.check()
        self._check("the store is in order", not report.problems, "; ".join(report.problems) or "no problem found")

    # -- pieces of them

    def _turn(self, part: str, app: str) -> DemoTurn:
        self._daemon.forget_page_cache()
        self._take(part, app)
        return self.findings.turns[-1]

    def _take(self, part: str, app: str) -> Mapping[str, Any]:
        self._view.busy(app, "switching")
        answer = self._crew.ask(app, "turn")
        self._took(part, app, answer)
        return answer

    def _took(self, part: str, app: str, answer: Mapping[str, Any]) -> None:
        self._asked[app] += 1
        turn = DemoTurn.of(part, app, self.seconds, answer["done"])
        self._tokens[app] = turn.tokens
        self.findings.turns.append(turn)
        self._view.turned(turn, answer["text"])

    def _prefill_again(self, client: Client, app: AppPlan) -> Prefill:
        """The time to the first token for the app's whole conversation in a fresh context of another app.

        Chunks are shared inside an app only, so that nothing of it can be reused.
        """
        original = next(c for c in client.contexts(everyone=True) if c.app.endswith(f"/{app.app}"))
        messages = list(client.show(original.id, everyone=True).messages)
        if messages[-1].role == "assistant":
            messages.pop()
        context = client.create()
        done = client.generate(context.id, [Message(m.role, m.content) for m in messages], max_tokens=1).done
        client.delete(context.id)
        if done.switch.tokens:
            raise Internal(f"{done.switch.tokens} tokens of a new context were there already")
        return Prefill(app.app, self.seconds, done.n_prompt, done.ttft_ms - done.queue_ms, True)

    def _look(self, client: Client) -> None:
        """How the memory is used while all contexts are alive."""
        self.findings.stats = client.stats()
        tiers = [c.tiers for c in client.contexts(everyone=True)]
        self.findings.tiers = dict(
            zip(("cells", "pool", "disk", "none"), map(sum, zip(*tiers, strict=True)), strict=True)
        )

    def _settle(self, client: Client) -> None:
        """Wait until the daemon has nothing to do: no request, no chunk being saved or written."""
        pause, late, before = threading.Event(), self._clock.now() + _SETTLE_S, None
        while self._clock.now() < late:
            stats = client.stats()
            now = (stats["counts"], stats["pool_bytes"], stats["requests"]["active"])
            if now == before and not stats["requests"]["active"]:
                return
            before = now
            pause.wait(_QUIET_S)
        raise MachineError(f"the daemon does not come to rest within {_SETTLE_S:.0f} s")

    def _rest_seconds(self) -> float:
        """What comes after the turns, at the speed seen so far."""
        done = [p for p in self.findings.prefills if not p.again]
        per_token = sum(p.ms for p in done) / 1e3 / max(1, sum(p.tokens for p in done))
        compared = sum(self._tokens[app.app] for app in self.plan.apps[-self.plan.n_compared :])
        return compared * per_token + (len(self.plan.apps) + self.plan.n_compared) * _TURN_S + _RESTART_S

    def _left(self, app: AppPlan) -> int:
        return app.n_questions - self._asked[app.app]

    def _check(self, name: str, ok: bool, text: str) -> None:
        self.findings.checks.append(Check(name, ok, text))

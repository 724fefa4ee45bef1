"""What each app has had since the start: calls, tokens, errors.

Law: counts only grow, for as many apps as there is room for; those that were served least lately are counted together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from llmaas.calls import Done
from llmaas.errors import LlmaasError
from llmaas.records import AppId
from llmaas.service.call import Call

N_APPS = 256
"""Apps that are counted one by one."""
OTHERS = AppId("others")
"""All other apps."""


@dataclass(slots=True)
class AppTally:
    calls: int = 0
    tokens_prompt: int = 0
    tokens_generated: int = 0
    tokens_recomputed: int = 0
    switch_ms: float = 0.0
    failed: dict[str, int] = field(default_factory=dict)
    """Calls that failed, by the error's code."""

    def add(self, other: AppTally) -> None:
        self.calls += other.calls
        self.tokens_prompt += other.tokens_prompt
        self.tokens_generated += other.tokens_generated
        self.tokens_recomputed += other.tokens_recomputed
        self.switch_ms += other.switch_ms
        for code, n in other.failed.items():
            self.failed[code] = self.failed.get(code, 0) + n


class AppTallies:
    """A tally for each app. For one event loop."""

    def __init__(self) -> None:
        self._of: dict[AppId, AppTally] = {}
        """The app that was served last stands at the end."""
        self._others = AppTally()

    def count(self, call: Call, outcome: Done | LlmaasError) -> None:
        """A call has ended, which was no hint."""
        app = call.live.row.app
        tally = self._of[app] = self._of.pop(app, AppTally())
        tally.add(_of_call(call, outcome))
        if len(self._of) > N_APPS:
            self._others.add(self._of.pop(next(iter(self._of))))

    def snapshot(self) -> dict[str, dict[str, object]]:
        """Each app's tally as plain values, by its name."""
        found: dict[str, dict[str, object]] = {app: asdict(tally) for app, tally in self._of.items()}
        return {**found, OTHERS: asdict(self._others)} if self._others.calls else found


def _of_call(call: Call, outcome: Done | LlmaasError) -> AppTally:
    tally = AppTally(calls=1, tokens_generated=len(call.answer.drawn))
    if isinstance(outcome, LlmaasError):
        tally.failed[outcome.code] = 1
        return tally
    tally.tokens_prompt, tally.tokens_recomputed = outcome.n_prompt, outcome.switch.recomputed
    tally.switch_ms = outcome.switch.switch_ms
    return tally

"""Pacing: when the engine may take its next step, and for which calls.

Law: limits are in tokens per second, for one call, for one app, or for all calls together; the strictest counts. The
duty is the share of the time that the engine may compute.
"""

from __future__ import annotations

from llmaas.planner.jobs import Job
from llmaas.planner.settings import PlannerSettings
from llmaas.policies.rate_limits import RateLimits
from llmaas.records import AppId


class Pacing:
    """RateLimits and duty. ``limited``: whether any rate limit is set at all."""

    def __init__(self, settings: PlannerSettings) -> None:
        self._rates = RateLimits()
        """Of calls by their request; None is all calls together."""
        self._app_rates = RateLimits(settings.app_rate)
        self._rates.set(None, settings.rate)
        self.duty = 1.0
        self.rests_until = 0.0
        """The moment from which the duty lets the engine compute again."""
        self.limited = False
        self._update()

    def limit(self, app: AppId | None, rate: float | None) -> None:
        """A new limit for an app, or for all calls together; None for no limit."""
        (self._rates if app is None else self._app_rates).set(app, rate)
        self._update()

    def add(self, job: Job, rate: float | None) -> None:
        """A call was submitted, with a limit of its own or none."""
        self._rates.set(job.request, rate)
        self._update()

    def remove(self, job: Job) -> None:
        self._rates.set(job.request, None)
        self._update()

    def ready(self, job: Job) -> float:
        """The moment from which its limits allow the call's next step."""
        return max(self._rates.ready(None, job.request), self._app_rates.ready(job.context.app))

    def limits(self, job: Job) -> bool:
        """Whether any limit concerns the call."""
        return self._rates.limits(None, job.request) or self._app_rates.limits(job.context.app)

    def charge(self, job: Job, answer: int, prompt_worth: float, began: float) -> None:
        """Charge a step that began at ``began`` to the call's limits: ``answer`` generated tokens for each.

        The limit of all calls together also counts the prompt, as so many generated tokens as take the same time.
        """
        self._rates.charge(None, answer + prompt_worth, began)
        self._rates.charge(job.request, answer, began)
        self._app_rates.charge(job.context.app, answer, began)

    def rest(self, busy_s: float, now: float) -> None:
        """The engine has computed for so many seconds."""
        if self.duty < 1.0:
            self.rests_until = now + busy_s * (1.0 / self.duty - 1.0)

    def _update(self) -> None:
        self.limited = bool(self._rates or self._app_rates)

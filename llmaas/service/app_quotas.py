"""The quotas of single apps: told to whatever keeps to them, and what each app has of them.

Law: decides nothing, and keeps nothing: ``apps`` has the table. Everything is on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from llmaas.planner.events import AppDiskChanged, RateChanged
from llmaas.planner.planner import Planner
from llmaas.records import NO_APP_QUOTA, AppId, AppInfo, AppQuota, AppUse
from llmaas.service.parts import ServiceParts


class AppQuotas:
    """``app_rate``: tokens per second of an app without a limit of its own."""

    def __init__(
        self,
        parts: ServiceParts,
        planner: Planner,
        dispatch: Callable[[AppDiskChanged | RateChanged], None],
        app_rate: float | None,
    ) -> None:
        self._quotas, self._places, self._calls = parts.quotas, parts.app_places, parts.calls
        self._embedding = parts.embedding
        self._planner, self._dispatch, self._app_rate = planner, dispatch, app_rate
        self._before: dict[AppId, AppQuota] = {}
        """What the app's quotas were when they were set last."""

    def set(self, app: AppId, quota: AppQuota) -> None:
        """These hold from now on."""
        before = self._before.pop(app, NO_APP_QUOTA)
        if quota != NO_APP_QUOTA:
            self._before[app] = quota
        self._quotas.set_own(app, quota.contexts, quota.tokens)
        if quota.requests is None:
            self._places.pop(app, None)
        else:
            self._places[app] = quota.requests
        if quota.rate != before.rate:
            self._dispatch(RateChanged(app, self._app_rate if quota.rate is None else quota.rate))
        if quota.disk_bytes != before.disk_bytes:
            self._dispatch(AppDiskChanged(app, quota.disk_bytes))

    def used(self, app: AppId) -> AppUse:
        """What the app has now."""
        contexts, tokens = self._quotas.kept(app)
        requests = sum(call.live.row.app == app for call in self._calls.values() if not call.hint)
        requests += self._embedding.get(app, 0)
        return AppUse(contexts, tokens, self._planner.disk_used_of(app), requests)


def as_plain(infos: list[AppInfo]) -> dict[str, dict[str, object]]:
    """For each app what it has and may have, of what its quotas bound, as plain values."""
    return {
        info.app: {
            name: {"used": used.get(name), "quota": most}
            for used in (asdict(info.used),)
            for name, most in asdict(info.quota).items()
            if most is not None
        }
        for info in infos
        if info.quota != NO_APP_QUOTA
    }

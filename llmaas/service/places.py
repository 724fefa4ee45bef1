"""Who may wait or run when more calls and hints come than there are places for.

Law: values only; what one app asks for takes no place that another app needs. Each app has ``per_app`` places; of all
places together there are ``total``, and when they are taken, an app with fewer calls gets one of the app with most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from llmaas.errors import Busy
from llmaas.records import AppId
from llmaas.service.call import Call

APPS_AT_ONCE = 4
"""How many apps can have all their places taken at once."""
APP_HINTS = 2
"""Hints of one app that wait or run."""
HINTS = 16
"""Hints of all apps that wait or run."""
OPERATOR_CALLS = 8
"""Places beyond those of all apps, for calls of the operator."""
HINT_WAIT_S = 5.0
"""Seconds that a hint waits for its turn, at most: so that it does not become more urgent than calls."""
HINT_AGAIN_S = 1.0
"""Seconds after a hint in which another one does nothing if all of the context is in CELLS still. After that it makes
the context one that leaves CELLS later."""


NO_OTHERS: Mapping[AppId, int] = {}


class CallPlaces:
    """``per_app``: calls of one app that may wait or run, but for those in ``own``. ``others``: requests of apps that
    count with their calls, and never go for one. ``extra``: more than what apps may have, for somebody who must not be
    kept out by them."""

    def __init__(
        self, per_app: int, own: Mapping[AppId, int], extra: int = 0, *, others: Mapping[AppId, int] = NO_OTHERS
    ) -> None:
        self._per_app, self._own, self._extra, self._others = per_app, own, extra, others
        self._total = APPS_AT_ONCE * per_app + extra

    def to_push_out(self, app: AppId, calls: Iterable[Call]) -> Call | None:
        """The call that must go so that ``app`` may have one more; None if there is a place. Raises Busy.

        It is the last that came of the user and app with most, of those that have not begun; the app must have more
        than one more than ``app``, or the two would push each other out for ever.
        """
        calls = [call for call in calls if not call.hint]
        of_app = Counter(call.live.row.app for call in calls)
        self.refuse_one_more(app, of_app[app])
        if len(calls) < self._total:
            return None
        of_user = Counter(_user(call.live.row.app) for call in calls)

        def share(owner: AppId) -> tuple[int, int]:
            return of_user[_user(owner)], of_app[owner]

        waiting = [call for call in calls if call.progress.admitted is None and not call.control.cancelled]
        last = max(waiting, key=lambda call: (*share(call.live.row.app), call.id), default=None)
        if last is None or not _has_more(last.live.row.app, app, share(last.live.row.app), share(app)):
            raise Busy(f"{len(calls)} requests are waiting or running")
        return last

    def refuse_one_more(self, app: AppId, n_calls: int) -> None:
        """Raise Busy if an app with ``n_calls`` calls may have no more requests."""
        n, allowed = n_calls + self._others.get(app, 0), self._own.get(app, self._per_app)
        if n < allowed + self._extra:
            return
        hint = f"The app may have {allowed} ('llmaas app quota'); try again when one has ended."
        raise Busy(f"{n} requests of the app {app} are waiting or running", hint=hint if app in self._own else None)


def hints_to_push_out(app: AppId, calls: Iterable[Call]) -> list[Call] | None:
    """The hints that must go so that ``app`` may have one more; None if there is no place for it.

    A newer hint of an app says more about what will be needed than an older one; one that has begun goes on.
    """
    hints = [call for call in calls if call.hint]
    mine = [call for call in hints if call.live.row.app == app]
    if len(mine) >= APP_HINTS:
        return [oldest] if (oldest := _first_waiting(mine)) else None
    if len(hints) >= HINTS:
        of_app = Counter(call.live.row.app for call in hints)
        most = max(of_app.values())
        rest = [call for call in hints if of_app[call.live.row.app] == most > len(mine)]
        return [oldest] if (oldest := _first_waiting(rest)) else None
    return []


def _first_waiting(hints: list[Call]) -> Call | None:
    waiting = [call for call in hints if call.progress.admitted is None]
    return min(waiting, key=lambda call: call.id, default=None)


def _user(app: AppId) -> str:
    return app.partition("/")[0]


def _has_more(theirs: AppId, mine: AppId, their_share: tuple[int, int], my_share: tuple[int, int]) -> bool:
    if _user(theirs) == _user(mine):
        return their_share[1] > my_share[1] + 1
    return their_share[0] > my_share[0] + 1

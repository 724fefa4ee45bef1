"""Who sends requests on a connection, and what it may do.

Law: ``caller_of`` is the one place where rights are given; all else asks the Caller. Values only.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from llmaas.api.hello import app_id
from llmaas.api.limits import DEFAULT_LIMITS, Limits
from llmaas.errors import Forbidden
from llmaas.records import AppId


class Door(enum.Enum):
    """The sockets of a daemon. An app that is given the first only can never act as the operator."""

    APPS = "apps"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends requests on a connection."""

    app: AppId
    is_operator: bool
    """It may see and change what is not its app's: other apps' contexts, limits, budgets, adapters."""
    most_urgent: int = 0
    """The most urgent priority that its calls may have."""

    def allowed(self, priority: int) -> int:
        """The priority that a call gets which asks for ``priority``.

        >>> Caller(AppId("1000/mail"), is_operator=False, most_urgent=5).allowed(0)
        5
        """
        return max(priority, self.most_urgent)

    def owner(self, everyone: bool) -> AppId | None:
        """Whose contexts a request is about; None: every app's. Raises Forbidden."""
        if not everyone:
            return self.app
        self.require_operator("the contexts of every app are")
        return None

    def require_operator(self, what: str) -> None:
        if not self.is_operator:
            raise Forbidden(f"{what} for the operator")


def caller_of(
    uid: int, app: str, door: Door, limits: Limits = DEFAULT_LIMITS, *, on_behalf_of: int | None = None
) -> Caller:
    """The caller that says it is ``app``, of the user ``uid`` (as the kernel says), at this door.

    The operator is the user who runs the daemon, or root, on the admin socket. Rejected: the user alone, as every app
    of a device with one user would be the operator. The operator may act for an app of the user ``on_behalf_of``, as
    what serves other protocols does: then it is that app and no more. Raises BadRequest for a bad app name, Forbidden.
    """
    name, is_operator = app_id(uid, app), door is Door.ADMIN and uid in (0, os.geteuid())
    if on_behalf_of is not None:
        if not is_operator:
            raise Forbidden("field 'uid': connections on behalf of other users are for the operator")
        return caller_of(on_behalf_of, app, Door.APPS, limits)
    may_be_urgent = is_operator or not limits.urgent_apps.isdisjoint((app, name))
    return Caller(name, is_operator, 0 if may_be_urgent else limits.priority_floor)

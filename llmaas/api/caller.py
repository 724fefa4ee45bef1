"""Who sends requests on a connection, and what it may do.

Law: ``caller_of`` is the one place where rights are given; all else asks the Caller. Values only.
"""

from __future__ import annotations

import enum
import os
import re
import reprlib
from typing import Protocol

from llmaas.api.hello import MAX_UID, app_id
from llmaas.api.limits import DEFAULT_LIMITS, Limits
from llmaas.errors import BadRequest, BadToken, Forbidden
from llmaas.frozen import frozen
from llmaas.records import AppId


class Door(enum.Enum):
    """The sockets of a daemon. An app that is given the first only can never act as the operator."""

    APPS = "apps"
    ADMIN = "admin"


@frozen
class Caller:
    """Who sends requests on a connection."""

    app: AppId
    is_operator: bool
    """It may see and change what is not its app's: other apps' contexts, limits, budgets, adapters."""
    most_urgent: int = 0
    """The most urgent priority that its calls may have."""

    def allowed(self, priority: int, own: int | None = None) -> int:
        """The priority that a call gets which asks for ``priority``. ``own``: the app's own quota, in place of
        ``most_urgent``.

        >>> Caller(AppId("1000/mail"), is_operator=False, most_urgent=5).allowed(0)
        5
        """
        return max(priority, self.most_urgent if own is None else own)

    def owner(self, everyone: bool) -> AppId | None:
        """Whose contexts a request is about; None: every app's. Raises Forbidden."""
        if not everyone:
            return self.app
        self.require_operator("the contexts of every app are")
        return None

    @property
    def uid(self) -> int:
        """The user whose app it is."""
        return int(self.app.partition("/")[0])

    def require_operator(self, what: str) -> None:
        if not self.is_operator:
            raise Forbidden(f"{what} for the operator")


class Tokens(Protocol):
    """The apps that have a token, and which is whose."""

    def app_of(self, token: str) -> AppId | None:
        """The app that the token is of; None if it is no app's."""

    def refuse_without(self, app: AppId) -> None:
        """Raises BadToken if the app has a token, so that nobody may be it without; Busy while it is being changed."""


def caller_of(
    uid: int,
    app: str | None,
    door: Door,
    limits: Limits = DEFAULT_LIMITS,
    *,
    tokens: Tokens,
    token: str | None = None,
    on_behalf_of: int | None = None,
) -> Caller:
    """The caller that says it is ``app``, of the user ``uid`` (as the kernel says), at this door.

    The operator is the user who runs the daemon, or root, on the admin socket. Rejected: the user alone, as every app
    of a device with one user would be the operator. The operator may act for an app of the user ``on_behalf_of``, as
    what serves other protocols does: then it is that app and no more. So is whoever has a token, whatever its user;
    an app that has one is nobody's without, but the operator's. Raises BadRequest for a bad app name, BadToken, Busy,
    Forbidden.
    """
    is_operator = door is Door.ADMIN and uid in (0, os.geteuid())
    if on_behalf_of is not None and not is_operator:
        raise Forbidden("field 'uid': connections on behalf of other users are for the operator")
    if token is not None:
        return _app(_owner(tokens, token, app, on_behalf_of), limits)
    if app is None:
        raise BadRequest("field 'app' is missing")
    name = app_id(uid if on_behalf_of is None else on_behalf_of, app)
    if is_operator and on_behalf_of is None:
        return Caller(name, True)
    tokens.refuse_without(name)
    return _app(name, limits)


def app_named(name: str) -> AppId:
    """The app that an operator names: ``uid/name``, or a name, of the user who runs the daemon. Raises BadRequest.

    >>> app_named("1000/mail")
    '1000/mail'
    """
    user, slash, rest = name.rpartition("/")
    if not slash:
        return app_id(os.geteuid(), name)
    if not re.fullmatch("0|[1-9][0-9]{0,9}", user) or int(user) > MAX_UID:
        raise BadRequest(f"field 'name': a name or UID/NAME is wanted, not {reprlib.repr(name)}")
    return app_id(int(user), rest)


def _owner(tokens: Tokens, token: str, app: str | None, uid: int | None) -> AppId:
    """The app of the token, which must be the one that is named, if any. What is wrong with a token is not told."""
    found = tokens.app_of(token)
    if app is not None:
        app_id(0, app)
    user, _, name = (found or "").partition("/")
    if found is None or (app is not None and app != name) or (uid is not None and str(uid) != user):
        raise BadToken("this is not the token of " + ("an app" if app is None else f"the app {app!r}"))
    return found


def _app(app: AppId, limits: Limits) -> Caller:
    may_be_urgent = not limits.urgent_apps.isdisjoint((app, app.partition("/")[2]))
    return Caller(app, False, 0 if may_be_urgent else limits.priority_floor)

"""The operator's operations on apps that have a token or quotas of their own.

Law: pure; as ``operations``.
"""

from __future__ import annotations

from llmaas.api.app_messages import AppAdd, AppRemove, AppRotate, ListApps, SetAppQuota
from llmaas.api.operation import Operation, checked, nothing, record, records
from llmaas.records import AppInfo, AppQuota, NewToken


def apps() -> Operation[list[AppInfo]]:
    """List the apps that have a token or quotas of their own, and what they use; for the operator (``admin``)."""
    return Operation(ListApps(), records(AppInfo))


def app_add(name: str, *, contexts: str = "refuse", quota: AppQuota | None = None) -> Operation[NewToken]:
    """Give an app a token, without which nobody can be that app any more; for the operator (``admin``).

    ``name`` is a name, of the user who runs the daemon, or ``uid/name``. What of the app is connected is ended. If it
    has contexts already, which programs without the token have made, ``contexts`` says what becomes of them: with
    "refuse" the app gets no token (BadRequest), "keep" hands them over to whoever has the token, "delete" deletes them.
    The token is in the result and nowhere else. ``quota``: see ``app_quota``. Raises AppExists.
    """
    return Operation(checked(AppAdd, name, contexts, quota), record(NewToken))


def app_remove(name: str, *, contexts: str = "refuse") -> Operation[None]:
    """Forget an app's token and quotas: every program of its user can be that app again; for the operator (``admin``).

    ``contexts`` says what becomes of the app's contexts, as in ``app_add``. Raises UnknownApp.
    """
    return Operation(checked(AppRemove, name, contexts), nothing)


def app_rotate(name: str) -> Operation[NewToken]:
    """Give an app another token. The one before is none any more, and connections that were made with it are ended.
    For the operator (``admin``). Raises UnknownApp."""
    return Operation(AppRotate(name), record(NewToken))


def app_quota(name: str, quota: AppQuota) -> Operation[AppInfo]:
    """Give an app quotas of its own, with or without a token, in place of those that it had. They hold at once, and
    after a restart. For the operator (``admin``)."""
    return Operation(SetAppQuota(name, quota), record(AppInfo))

"""The operator's requests about apps that have tokens.

Law: pure.
"""

from __future__ import annotations

from llmaas.api.names import check_contexts
from llmaas.frozen import frozen
from llmaas.records import AppQuota


@frozen
class ListApps:
    """The apps that have a token, or quotas of their own."""


@frozen
class AppAdd:
    """Give an app a token. ``contexts`` says what becomes of contexts that the app has already: ``refuse`` (it gets no
    token then), ``keep`` or ``delete``."""

    name: str
    contexts: str = "refuse"
    quota: AppQuota | None = None
    """None: what it had before, or none."""

    def __post_init__(self) -> None:
        check_contexts(self.contexts)


@frozen
class AppRemove:
    """Forget an app's token and quotas. ``contexts`` says what becomes of its contexts, as in ``AppAdd``."""

    name: str
    contexts: str = "refuse"

    def __post_init__(self) -> None:
        check_contexts(self.contexts)


@frozen
class AppRotate:
    """Give an app another token; the one before is none any more."""

    name: str


@frozen
class SetAppQuota:
    """Give an app quotas of its own, in place of those that it had."""

    name: str
    quota: AppQuota


AppRequest = AppAdd | AppRemove | AppRotate | SetAppQuota
"""What changes what is known of an app."""
APP_OPERATIONS: dict[str, type[ListApps | AppRequest]] = {
    "apps": ListApps,
    "app_add": AppAdd,
    "app_remove": AppRemove,
    "app_rotate": AppRotate,
    "app_quota": SetAppQuota,
}

"""The operator's requests about apps that have tokens.

Law: pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmaas.api.names import check_contexts


@dataclass(frozen=True, slots=True)
class ListApps:
    """The apps that have a token."""


@dataclass(frozen=True, slots=True)
class AppAdd:
    """Give an app a token. ``contexts`` says what becomes of contexts that the app has already: ``refuse`` (it gets no
    token then), ``keep`` or ``delete``."""

    name: str
    contexts: str = "refuse"

    def __post_init__(self) -> None:
        check_contexts(self.contexts)


@dataclass(frozen=True, slots=True)
class AppRemove:
    """Forget an app's token. ``contexts`` says what becomes of its contexts, as in ``AppAdd``."""

    name: str
    contexts: str = "refuse"

    def __post_init__(self) -> None:
        check_contexts(self.contexts)


@dataclass(frozen=True, slots=True)
class AppRotate:
    """Give an app another token; the one before is none any more."""

    name: str


AppRequest = AppAdd | AppRemove | AppRotate
"""What changes an app's token."""
APP_OPERATIONS: dict[str, type[ListApps | AppRequest]] = {
    "apps": ListApps,
    "app_add": AppAdd,
    "app_remove": AppRemove,
    "app_rotate": AppRotate,
}

"""What ClientContext and AsyncClientContext have in common: a client, a context, and methods that bring both together.

Law: knows no operation, and no client.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from llmaas.errors import NotServing, ShuttingDown, UnknownContext
from llmaas.records import ContextId, ContextInfo

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")

NO_MATTER = (UnknownContext, NotServing, ShuttingDown)
"""Errors with which a fork need not be deleted at the end of its block: it is gone, or the daemon is."""


class BoundContext(Generic[C]):
    """``info`` is what the context was when this was made; ``show`` tells what it is now."""

    def __init__(self, client: C, info: ContextInfo) -> None:
        self.client = client
        self.info = info

    @property
    def id(self) -> ContextId:
        return self.info.id

    @property
    def name(self) -> str:
        return self.info.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} ({self.id})>"


def of_context(
    operation: Callable[Concatenate[str, P], Any], method: Callable[..., T]
) -> Callable[Concatenate[BoundContext[Any], P], T]:
    """The method of a context for a client's ``method``, which was made of ``operation``: with its documentation and
    its signature, but for the context."""

    def bound(self: BoundContext[Any], /, *args: P.args, **named: P.kwargs) -> T:
        return method(self.client, self.id, *args, **named)

    signature = inspect.signature(method)
    itself, _context, *rest = signature.parameters.values()
    vars(bound)["__signature__"] = signature.replace(parameters=[itself, *rest])
    bound.__name__ = bound.__qualname__ = operation.__name__
    bound.__doc__ = operation.__doc__
    return bound

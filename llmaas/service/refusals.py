"""The errors in which calls end.

Law: each says whose fault it was; nothing is changed here.
"""

from __future__ import annotations

from llmaas.errors import Cancelled, ContextTooLong, EngineFailed, Expired, LlmaasError, UnknownContext
from llmaas.planner.actions import Outcome
from llmaas.service.live_context import LiveContext


def failure(outcome: Outcome, n_generated: int) -> LlmaasError:
    """The error of a call that ended in ``outcome``, after so many tokens that stay in its context."""
    if outcome is Outcome.CANCELLED:
        return Cancelled("the request was cancelled", n_generated=n_generated)
    if outcome is Outcome.EXPIRED:
        return Expired("the request's deadline passed before it was done", n_generated=n_generated)
    return EngineFailed("the engine failed on this request")


def refuse_if_deleted(live: LiveContext) -> None:
    """Raises UnknownContext: the context may have been deleted while its lock was waited for."""
    if live.deleted:
        raise UnknownContext(f"context {live.row.name!r} was deleted")


def refuse_if_too_long(n_tokens: int, limit: int) -> None:
    """Raises ContextTooLong."""
    if n_tokens > limit:
        raise ContextTooLong(f"the context would have {n_tokens} tokens; at most {limit} fit")

"""The errors in which calls end.

Law: each says whose fault it was; nothing is changed here.
"""

from __future__ import annotations

from llmaas.calls import Turn
from llmaas.errors import (
    Cancelled,
    ContextTooLong,
    EngineFailed,
    Expired,
    LlmaasError,
    Moving,
    UnknownContext,
    WritesNoText,
)
from llmaas.planner.actions import Outcome
from llmaas.records import ModelInfo
from llmaas.service.live_context import LiveContext


def failure(outcome: Outcome, n_generated: int = 0, n_tokens: int | None = None) -> LlmaasError:
    """The error of a call that ended in ``outcome``, after so many tokens that stay in its context of ``n_tokens``."""
    if outcome is Outcome.CANCELLED:
        return Cancelled("the request was cancelled", n_generated=n_generated, n_tokens=n_tokens)
    if outcome is Outcome.EXPIRED:
        said = "the request's deadline passed before it was done"
        return Expired(said, n_generated=n_generated, n_tokens=n_tokens)
    return EngineFailed("the engine failed on this request")


def refuse_without_text(model: ModelInfo) -> None:
    """Raises WritesNoText for a model that has no contexts."""
    if not model.writes:
        raise WritesNoText(f"the model {model.title} makes embeddings only: it has no contexts and gives no answers")


def refuse_if_deleted(live: LiveContext) -> None:
    """Raises UnknownContext, Moving: the context may have gone while its lock was waited for."""
    if live.deleted:
        where = f"has moved to the node {live.moved_to}" if live.moved_to else "was deleted"
        raise UnknownContext(f"context {live.row.name!r} {where}")
    refuse_if_leaving(live)


def refuse_if_leaving(live: LiveContext) -> None:
    """Raises Moving."""
    if live.leaving:
        raise Moving(f"context {live.row.name!r} is on its way to the node {live.leaving}, which may have it by now")


def refuse_if_oversized(turn: Turn, limit: int, token_bytes: int) -> None:
    """Raises ContextTooLong for a turn that no context of ``limit`` tokens holds, whatever its tokens are; before any
    work is done that grows with it. ``token_bytes``: what a token stands for at most."""
    if len(turn.messages) > limit:
        raise ContextTooLong(f"{len(turn.messages)} messages have more tokens than fit; at most {limit} do")
    n = len(turn.prompt or "") + sum(len(message.content) for message in turn.messages)
    if n > limit * token_bytes:  # a character has a byte at least
        raise ContextTooLong(f"the text has {n} characters, which are more tokens than fit: at most {limit}")


def refuse_if_too_long(n_tokens: int, limit: int) -> None:
    """Raises ContextTooLong."""
    if n_tokens > limit:
        raise ContextTooLong(f"the context would have {n_tokens} tokens; at most {limit} fit")

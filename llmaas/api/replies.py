"""The daemon's replies and errors on the wire: made by the daemon, read by clients.

Law: pure. A reply may hold more fields than this version knows: they are ignored, so that a newer daemon can add fields
without a new protocol version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from llmaas.api.pages import Page
from llmaas.api.record_maps import from_map, to_map
from llmaas.api.wire import Frame
from llmaas.calls import Loading, Logprobs, Piece, Progress, Queued
from llmaas.errors import (
    BadRequest,
    Cancelled,
    Expired,
    Internal,
    LlmaasError,
    MalformedFrame,
    by_code,
)

MAX_MESSAGE = 2000
"""Most characters of an error message: it may quote what the caller sent."""
T = TypeVar("T")


def piece_frame(request_id: int, piece: Piece) -> Frame:
    frame: Frame = {"id": request_id, "type": "piece", "text": piece.text, "tokens": piece.tokens}
    if piece.logprobs is not None:
        frame["logprobs"] = [to_map(each) for each in piece.logprobs]
    if piece.progress is not None:
        frame["progress"] = to_map(piece.progress)
    if piece.queued is not None:
        frame["queued"] = to_map(piece.queued)
    return frame


def loading_frame(loading: Loading) -> Frame:
    """Of no request, but of a connection whose model is being waited for; it may come before the hello reply."""
    return {"type": "loading", **to_map(loading)}


def done_frame(request_id: int, result: object = None) -> Frame:
    return {"id": request_id, "type": "done", "result": result}


def page_frame(request_id: int, page: Page) -> Frame:
    """A ``done`` with a part of the result; ``next`` says where the rest begins, if there is more."""
    return done_frame(request_id, page.result) | ({} if page.next is None else {"next": page.next})


def failed_frame(request_id: int | None, error: LlmaasError) -> Frame:
    """``request_id`` None: a failure that belongs to no request, but to the connection."""
    return {"id": request_id, "type": "failed", **error_map(error)}


def piece(frame: Frame) -> Piece:
    text, tokens = frame.get("text"), frame.get("tokens")
    if type(text) is not str or type(tokens) is not list:
        raise MalformedFrame("the daemon sent a piece without text and tokens")
    logprobs, progress, queued = frame.get("logprobs"), frame.get("progress"), frame.get("queued")
    return Piece(
        text,
        tuple(tokens),
        None if logprobs is None else tuple(result_list(Logprobs, logprobs)),
        None if progress is None else result(Progress, progress),
        queued=None if queued is None else result(Queued, queued),
    )


def result(cls: type[T], value: object) -> T:
    """The record in a reply. Raises MalformedFrame: a bad reply is the daemon's fault."""
    try:
        return from_map(cls, value)
    except BadRequest as e:
        raise MalformedFrame(f"the daemon's reply cannot be read: {e.message}") from e


def result_list(cls: type[T], value: object) -> list[T]:
    if type(value) is not list:
        raise MalformedFrame("the daemon's reply cannot be read: a list was expected")
    return [result(cls, item) for item in value]


def result_map(value: object) -> Frame:
    if type(value) is not dict:
        raise MalformedFrame("the daemon's reply cannot be read: a map was expected")
    return value


_LEAVES: dict[str, type[LlmaasError]] = {BadRequest.code: BadRequest, Internal.code: Internal}
# by_code returns the most general class of a code. Code that catches BadRequest must catch it on the client's side too.


def error_map(error: LlmaasError) -> Frame:
    made: Frame = {
        "code": error.code,
        "message": error.message[:MAX_MESSAGE].encode("utf-8", "replace").decode(),
        "hint": error.hint,
        "fault": error.fault.value,
        "retryable": error.retryable,
    }
    if isinstance(error, (Cancelled, Expired)) or error.n_generated:
        made["n_generated"] = error.n_generated
    if error.n_tokens is not None:
        made["n_tokens"] = error.n_tokens
    return made


def error_from(frame: Mapping[str, Any]) -> LlmaasError:
    """The error of a failed reply, as the class of its code."""
    code, message, hint = (str(frame.get(name, "")) for name in ("code", "message", "hint"))
    cls = _LEAVES.get(code) or by_code().get(code)
    if cls is None:
        return LlmaasError(f"{message} (code {code!r}, which this client does not know)", hint=hint)
    n_generated, n_tokens = frame.get("n_generated"), frame.get("n_tokens")
    return cls(
        message,
        hint=hint,
        n_generated=n_generated if type(n_generated) is int else 0,
        n_tokens=n_tokens if type(n_tokens) is int else None,
    )

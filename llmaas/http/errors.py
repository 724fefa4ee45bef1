"""What can go wrong with a request over HTTP: one error class, and what becomes of the daemon's errors.

Law: pure. Every failure leaves as one HttpError, in the shape that the API's own clients expect; its message says what
happened and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

from llmaas.errors import Cancelled, Expired, Fault, LlmaasError

ErrorShape = Callable[["HttpError"], bytes]

INVALID = "invalid_request_error"
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class HttpError(Exception):
    """A refusal or failure. ``param`` names the field at fault; ``retry`` says whether the same request may succeed
    later, as it stands; ``allow`` has the methods that the path takes, if it takes another one."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: bool = False,
        allow: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self._allow = ", ".join(allow)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    @property
    def kind(self) -> str:
        """OpenAI's ``type`` of the error."""
        return _KINDS.get(self.status, "server_error" if self.status >= 500 else INVALID)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's clients repeat requests on some statuses by themselves, unless ``x-should-retry`` says no."""
        if self.retry:
            return [(b"retry-after", b"1"), (b"x-should-retry", b"true")]
        known = [(b"www-authenticate", b"Bearer")] if self.status == 401 else []
        if self._allow:
            known.append((b"allow", self._allow.encode()))
        return [*known, (b"x-should-retry", b"false")]


_STATUS = {
    "unknown_context": 404,
    "unknown_adapter": 404,
    "unknown_model": 404,
    "unknown_request": 404,
    "conflict": 409,
    "context_exists": 409,
    "frame_too_large": 413,
    "forbidden": 403,
    "bad_token": 401,
    "quota": 429,
    "busy": 429,
    "cancelled": 499,
    "expired": 408,
    "shutting_down": 503,
    "not_serving": 503,
}
_CODES = {
    "context_too_long": "context_length_exceeded",
    "unknown_model": "model_not_found",
    "quota": "insufficient_quota",
    "busy": "rate_limit_exceeded",
    "bad_token": "invalid_api_key",
}


def from_daemon(error: LlmaasError, schema_field: str = "response_format") -> HttpError:
    """What an error of the daemon is over HTTP; ``schema_field``: the request's field that holds a schema."""
    status = _STATUS.get(error.code)
    if status is None:
        status = 400 if error.fault is Fault.CALLER else 503 if error.retryable else 500
    text = f"{error.message.rstrip('.')}. {error.hint}"
    if isinstance(error, Cancelled | Expired):
        text = f"{error.message} after {error.n_generated} tokens"
    code = _CODES.get(error.code, error.code)
    param = "messages" if error.code == "context_too_long" else None
    if error.code == "bad_request":
        param = _field(error.message, schema_field)
    return HttpError(status, text, param=param, code=code, retry=error.retryable)


def _field(message: str, schema_field: str) -> str | None:
    """The field over HTTP of which the daemon's message speaks; None if that is not known."""
    if named := re.match(r"field '([\w.\[\]]+)'", message):
        return "llmaas.context" if named[1] in ("name", "context") else named[1]
    fields = (("json_schema", schema_field), ("grammar", "llmaas.grammar"), ("template", "messages"))
    return next((field for word, field in fields if word in message), None)


def openai_error(error: HttpError) -> bytes:
    """The body of an error as OpenAI's API has it."""
    fields = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": fields})


def ollama_error(error: HttpError) -> bytes:
    """The body of an error as Ollama's API has it."""
    about = f"{error.param}: " if error.param and error.param not in error.message else ""
    return msgspec.json.encode({"error": f"{about}{error.message}"})


def shape_of(path: str) -> ErrorShape:
    """The shape of errors of the API that ``path`` belongs to."""
    return ollama_error if path.startswith("/api/") or path == "/api" else openai_error

"""A request over HTTP as endpoints see it, and their answer to it.

Law: a request has a bounded body, and gets exactly one response. When its client goes away, what works on it is
cancelled.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

import msgspec

from llmaas.http.errors import HttpError
from llmaas.http.identity import Identity

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")

MOST_BODY = 8 << 20
"""Bytes of a request's body. The daemon takes 4 MiB of text; JSON may need more bytes for it."""
MOST_BODIES = 64 << 20
"""Bytes of the bodies that are being read, of all requests together."""
BODY_S = 30.0
"""Seconds within which a body must be complete."""
_DISCARDED = 8
"""How many times ``MOST_BODY`` is read of a body that is too large: a client reads the answer when it has sent all."""
JSON = b"application/json"
_ONCE = frozenset((b"host", b"origin", b"authorization", b"x-llmaas-app"))


class BodyBytes:
    """What the bodies that are being read hold together."""

    def __init__(self) -> None:
        self.used = 0


class HttpCall:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, bodies: BodyBytes) -> None:
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        names = [name for name, _ in scope["headers"] if name in _ONCE]
        self.twice = next((name.decode() for name in names if names.count(name) > 1), None)
        """A header that may be there once, and is there again: whoever reads the other one sees another request."""
        self.query: bytes = scope.get("query_string", b"")
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.client = scope.get("client")
        self.identity = Identity("")
        """Who sends it; set before an endpoint sees it."""
        self.schema_field = "response_format"
        """The field of the request that holds the schema which its answer keeps to."""
        self.more_headers: list[tuple[bytes, bytes]] = []
        """Headers of every response to this request."""
        self.started = False
        """Whether a response has begun."""
        self.finished = False
        """Whether the response has been sent."""
        self.gone = False
        """Whether the client has gone away before that."""
        self._receive, self._send, self._bodies = receive, send, bodies

    # -- the request

    async def body(self) -> bytes:
        """All of the body. Raises HttpError if it is too large, too slow, or too much with those of others."""
        kept = bytearray()
        try:
            return await asyncio.wait_for(self._read(kept), BODY_S)
        except asyncio.TimeoutError:
            raise HttpError(408, f"the body did not come within {BODY_S:g} s.") from None
        finally:
            self._bodies.used -= len(kept)

    async def _read(self, kept: bytearray) -> bytes:
        length = self.headers.get("content-length", "")
        n_read, refused = 0, int(length) > MOST_BODY if length.isdigit() else False
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise asyncio.CancelledError
            part: bytes = message.get("body", b"")
            n_read += len(part)
            refused = refused or n_read > MOST_BODY
            if not refused:
                if self._bodies.used + len(part) > MOST_BODIES:
                    raise HttpError(503, "too many large requests are being read. Try again in a moment.", retry=True)
                kept += part
                self._bodies.used += len(part)
            if not message.get("more_body", False) or n_read > _DISCARDED * MOST_BODY:
                break
        if refused:
            raise HttpError(413, f"a body may have {MOST_BODY} bytes. Send less text.", code="request_too_large")
        return bytes(kept)

    async def read(self, kind: type[T]) -> T:
        """The body as a struct. Raises HttpError that names the field at fault."""
        body = await self.body()
        if not body.strip():
            raise HttpError(400, "the body is empty. Send a JSON object.")
        return decoded(body, kind)

    async def until_gone(self) -> None:
        """Return when the client has gone away, or the response was sent. To be called once the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = not self.finished

    # -- the response

    async def start(self, status: int, kind: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Begin a response whose body comes in pieces."""
        self.started = True
        all_headers = [(b"content-type", kind), *headers, *self.more_headers]
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})

    async def write(self, data: bytes) -> None:
        """A piece of the body; it is sent at once."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        self.finished = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def reply(self, body: bytes, status: int = 200, *headers: tuple[bytes, bytes], kind: bytes = JSON) -> None:
        """The whole response."""
        await self.start(status, kind, (b"content-length", b"%d" % len(body)), *headers)
        self.finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def reply_json(self, value: object) -> None:
        await self.reply(msgspec.json.encode(value))


def decoded(body: bytes, kind: type[T]) -> T:
    """A struct from JSON. Raises HttpError that names the field at fault."""
    try:
        body.decode()  # msgspec leaves texts that it does not read as they are, such as a tool's parameters
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        field = re.search(r" - at `\$\.?(.*)`$", text, re.DOTALL)
        param = field[1][:200] if field and field[1] else _missing(text)
        message = text[: field.start()] if field else text
        where = f"field '{param}': " if param else ""
        raise HttpError(400, f"{where}{message[:500]}", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, f"the body is not JSON: {str(error)[:200]}") from None


def _missing(text: str) -> str | None:
    found = re.search(r"missing required field `(\w+)`", text)
    return found[1] if found else None

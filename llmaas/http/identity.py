"""Who sends a request over HTTP: the app that the daemon serves it as.

Law: pure. An app's token, which the daemon looks at, goes before all else. Without one the kernel says on the Unix
socket which user it is, and a header may name the app; over TCP a request is an app of the user who runs this process.
A token that cannot be one is refused, never left out of account.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from llmaas.api.app_token import holds_token, is_token
from llmaas.frozen import frozen
from llmaas.http.errors import HttpError
from llmaas.records import SHORT_NAME

DEFAULT_APP = "http"
APP_HEADER = "x-llmaas-app"
UNIX = "unix"
"""What stands in place of a client's host where the client came over the Unix socket; its port is then its uid."""


@frozen
class Identity:
    """An app of a user, or the app of a token."""

    app: str | None
    """None: the app that the token is of."""
    uid: int | None = None
    token: str = field(default="", repr=False)


def identity_of(client: Any, headers: Mapping[str, str], *, tokens_required: bool) -> Identity:
    """Who a request is from: ``client`` is what ASGI calls so. Raises HttpError."""
    name, is_unix = headers.get(APP_HEADER), bool(client) and client[0] == UNIX
    token = _token(headers.get("authorization", ""))
    if tokens_required and not token:
        raise _unauthorized("this server wants an app's token")
    if not (token or is_unix) and name not in (None, DEFAULT_APP):
        raise HttpError(
            403,
            "over TCP a request cannot choose its app without a token. Use the Unix socket, or leave it out.",
            param=APP_HEADER,
        )
    if name is not None and not re.fullmatch(SHORT_NAME, name):
        raise HttpError(400, "an app's name has 1 to 64 characters of A-Z a-z 0-9 . _ -", param=APP_HEADER)
    if token:
        return Identity(name, token=token)
    return Identity(name or DEFAULT_APP, client[1] if is_unix else os.geteuid())


def refuse_in_url(query: bytes) -> None:
    """Raises HttpError for a token in a URL, which proxies and browsers keep."""
    if holds_token(query.decode("latin-1")):
        raise _unauthorized("a token does not belong into a URL, which others write down")


def _token(authorization: str) -> str:
    """The token of an app; "" for what clients send that must have a key and have none ("ollama", "EMPTY")."""
    if not holds_token(authorization):
        return ""
    scheme, _, token = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not is_token(token.strip()):
        raise _unauthorized("this is not the token of an app")
    return token.strip()


def _unauthorized(what: str) -> HttpError:
    """Says what to do in the words of ``BadToken``."""
    return HttpError(
        401,
        f"{what}. Send the header 'Authorization: Bearer TOKEN' (api_key in OpenAI's clients); 'llmaas app add NAME' "
        "makes a token.",
        code="invalid_api_key",
    )

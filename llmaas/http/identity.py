"""Who sends a request over HTTP: the app that the daemon serves it as.

Law: pure. Over the Unix socket the kernel says which user it is, and a header may name the app; over TCP a request is
an app of the user who runs this process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmaas.http.errors import HttpError

DEFAULT_APP = "http"
APP_HEADER = "x-llmaas-app"
UNIX = "unix"
"""What stands in place of a client's host where the client came over the Unix socket; its port is then its uid."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Identity(NamedTuple):
    """An app of a user."""

    uid: int
    app: str


def identity_of(client: Any, headers: Mapping[str, str]) -> Identity:
    """Who a request is from: ``client`` is what ASGI calls so. Raises HttpError."""
    name = headers.get(APP_HEADER)
    if client and client[0] == UNIX:
        if name is not None and not _NAME.fullmatch(name):
            raise HttpError(400, "an app's name has 1 to 64 characters of A-Z a-z 0-9 . _ -", param=APP_HEADER)
        return Identity(client[1], name or DEFAULT_APP)
    if name not in (None, DEFAULT_APP):
        raise HttpError(
            403,
            "over TCP a request cannot choose its app. Use the Unix socket, or leave it out.",
            param=APP_HEADER,
        )
    return Identity(os.geteuid(), DEFAULT_APP)

"""Which names a request over TCP may call this server by, and which web pages may send it.

Law: pure. A page of the web can have its name lead to 127.0.0.1 (DNS rebinding), or send requests there from the
user's browser: the first is known by its Host header, the second by its Origin.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from llmaas.http.errors import HttpError

_APP_SCHEMES = ("app", "tauri", "vscode-webview", "file")
"""Origins of desktop programs that are made of web pages: no page of the web has them."""


def is_local(host: str) -> bool:
    """Whether a name or address, without a port, is this machine itself.

    >>> is_local("127.0.0.1"), is_local("localhost"), is_local("evil.example")
    (True, True, False)
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _host(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def check_origin(headers: Mapping[str, str]) -> str | None:
    """The origin that a request over TCP names, which may read the answer; None if it names none. Raises HttpError."""
    host = headers.get("host", "")
    if host and not is_local(_host(host)):
        raise HttpError(
            403,
            f"the Host header names {host[:80]!r}, which is not this machine. Use 127.0.0.1 or localhost.",
            param="host",
        )
    origin = headers.get("origin")
    if origin is None:
        return None
    try:
        parts = urlsplit(origin)
        allowed = parts.scheme in _APP_SCHEMES or (parts.scheme in ("http", "https") and is_local(parts.hostname or ""))
    except ValueError:
        allowed = False
    if not allowed:
        raise HttpError(
            403,
            f"pages of {origin[:80]!r} may not use this server. Send the request from a program, or from a page of "
            "this machine.",
            param="origin",
        )
    return origin

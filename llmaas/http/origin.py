"""Which names a request over TCP may call this server by, and which web pages may send it.

Law: pure. A page of the web can have its name lead to 127.0.0.1 (DNS rebinding), or send requests there from the
user's browser: the first is known by its Host header, the second by its Origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from llmaas.http.access import Access
from llmaas.http.errors import HttpError

_APP_SCHEMES = ("app", "tauri", "vscode-webview", "file")
"""Origins of desktop programs that are made of web pages: no page of the web has them."""


def _host(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _is_own_page(host: str, access: Access) -> bool:
    """Pages of this machine, and of the names that it has; of other addresses only this server's own."""
    return Access(hosts=access.hosts).allows(host)


def check_origin(headers: Mapping[str, str], access: Access) -> str | None:
    """The origin that a request over TCP names, which may read the answer; None if it names none. Raises HttpError."""
    host = headers.get("host", "")
    if host and not access.allows(_host(host)):
        what = "which is neither an address nor in http_hosts" if access.addresses else "which is not this machine"
        raise HttpError(
            403,
            f"the Host header names {host[:80]!r}, {what}. Use the server's address, or a name that the setting "
            "http_hosts has.",
            param="host",
        )
    origin = headers.get("origin")
    if origin is None:
        return None
    try:
        parts = urlsplit(origin)
        allowed = parts.scheme in _APP_SCHEMES or (
            parts.scheme in ("http", "https")
            and (parts.netloc.lower() == host.lower() or _is_own_page(parts.hostname or "", access))
        )
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

"""Where a client finds the daemon if it is not told: where the commands find it.

Law: reads the environment and the settings file, and of them no more than what concerns a client. An app must not fail
for a setting that is the daemon's business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from llmaas.config_file import PREFIX, config_file, read_path, read_toml
from llmaas.errors import ConfigError
from llmaas.frozen import frozen
from llmaas.socket_place import socket_in_use

DEFAULT_APP = "python"
"""The app of programs that give themselves no name."""


def admin_socket(socket: Path) -> Path:
    """The operator's socket, beside the one that apps use.

    >>> admin_socket(Path("/run/user/1000/llmaas/llmaas.sock")).name
    'llmaas-admin.sock'
    """
    return socket.with_name(f"{socket.stem}-admin{socket.suffix}")


TOKEN_VARIABLE = "LLMAAS_TOKEN"
"""Holds the token of the app that a program is. (Arguments of a command would be seen by every user.)"""


LOADING_S = 120.0
"""Seconds that a client which names a model waits for the daemon's hello at least: it may have to be loaded."""


def hello_timeout(timeout: float, model: str | None) -> float:
    """How long a client waits for the connection and the daemon's hello, in seconds."""
    return timeout if model is None else max(timeout, LOADING_S)


class ClientIdentity(NamedTuple):
    """Who a client says that it is: ``app`` None is the app of the token."""

    app: str | None
    token: str | None


def client_identity(app: str | None, token: str | None, *, operator: bool) -> ClientIdentity:
    """What is not given, the environment says; "" is no token. The environment's token is not meant for a client that
    connects as the ``operator``.

    >>> client_identity("mail", "", operator=False)
    ClientIdentity(app='mail', token=None)
    """
    if token is None and not operator:
        token = os.environ.get(TOKEN_VARIABLE)
    return ClientIdentity(app if app is not None or token else DEFAULT_APP, token or None)


@frozen
class DaemonAddress:
    socket: Path
    uid: int | None = None
    """The user whom clients accept as the daemon's, besides their own and root."""


def daemon_address(socket: Path | str | None, uid: int | None, *, admin: bool) -> DaemonAddress:
    """The address that a client connects to. What is not given, the environment and the settings file say; they are
    not read if ``socket`` is given. Raises ConfigError."""
    if socket is None:
        found = find_daemon(os.environ)
        found = found if uid is None else DaemonAddress(found.socket, uid)
    else:
        found = DaemonAddress(Path(socket), uid)
    return DaemonAddress(admin_socket(found.socket), found.uid) if admin else found


def find_daemon(environ: Mapping[str, str]) -> DaemonAddress:
    """By LLMAAS_SOCKET and LLMAAS_DAEMON_UID, else the settings file, else where the daemon serves by default."""
    file = config_file(environ)
    settings = read_toml(file) if file else {}
    socket, origin, base = settings.get("socket"), str(file), file.parent if file else Path()
    if (variable := f"{PREFIX}SOCKET") in environ:
        socket, origin, base = environ[variable], f"variable {variable}", Path.cwd()
    uid: object = environ.get(f"{PREFIX}DAEMON_UID", settings.get("daemon_uid"))
    try:
        place = socket_in_use(environ) if socket is None else read_path(socket, base)
    except ValueError:
        raise ConfigError(f"setting socket ({origin}) is {socket!r}; it must be a path") from None
    return DaemonAddress(place, _uid(uid))


def _uid(raw: object) -> int | None:
    if raw is None or (isinstance(raw, int) and not isinstance(raw, bool)):
        return raw
    if isinstance(raw, str) and raw.isascii() and raw.isdecimal():
        return int(raw)
    raise ConfigError(f"setting daemon_uid is {raw!r}; it must be the number of a user")

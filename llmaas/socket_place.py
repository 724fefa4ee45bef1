"""Where the daemon's socket is if no setting says it: one rule for the daemon and its clients.

Law: a login shell, a unit of systemd, a cron job and ``su`` have other environments, and must come to the same place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_NAME = Path("llmaas", "llmaas.sock")


def socket_places(environ: Mapping[str, str], root: Path = Path("/")) -> list[Path]:
    """Places for the socket, the best first: the daemon takes the first, a client the first that has a socket.

    XDG_RUNTIME_DIR may be missing where the daemon had it, or the other way round: without it the folder that systemd
    gives the user, /run/user/UID, is taken, if there is one. TMPDIR often differs between a session and a service, so
    it counts only on systems without a /tmp, such as Termux.
    """
    uid = os.getuid()
    given, systemd, tmp = Path(environ.get("XDG_RUNTIME_DIR", "")), root / "run/user" / str(uid), root / "tmp"
    if not os.access(tmp, os.W_OK | os.X_OK):
        tmp = Path(environ.get("TMPDIR") or tmp)
    # The XDG specification says that a relative path in these variables is to be ignored.
    folders = [given / _NAME] if given.is_absolute() else []
    if _is_of(systemd, uid):
        folders.append(systemd / _NAME)
    return list(dict.fromkeys([*folders, tmp / f"llmaas-{uid}" / _NAME.name]))


def socket_in_use(environ: Mapping[str, str], root: Path = Path("/")) -> Path:
    """Where a client finds the daemon: the first place that has a socket; where the daemon would make it if none has.

    A socket is not trusted for being there: the client asks the kernel who serves it.
    """
    places = socket_places(environ, root)
    return next((place for place in places if _is_there(place)), places[0])


def http_socket(daemon: Path) -> Path:
    """The Unix socket for HTTP, beside the daemon's.

    >>> http_socket(Path("/run/user/1000/llmaas/llmaas.sock")).name
    'llmaas-http.sock'
    """
    return daemon.with_name(f"{daemon.stem}-http{daemon.suffix}")


def _is_of(folder: Path, uid: int) -> bool:
    try:
        return folder.stat().st_uid == uid and folder.is_dir()
    except OSError:
        return False


def _is_there(place: Path) -> bool:
    try:
        return place.is_socket()
    except OSError:  # the folder is somebody else's
        return False

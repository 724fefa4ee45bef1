"""The daemon's socket in the file system: the folder that it is in, the lock beside it, the socket itself.

Law: at most one daemon holds the path, by a lock that ends with its process; nobody but this user and root can put
another socket in its place; a socket that a dead daemon left is replaced, a live one never; no link is followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import stat
from pathlib import Path

from llmaas.api.activation import handed_over
from llmaas.errors import ConfigError, NotTrusted, SocketInUse

log = logging.getLogger(__name__)

_MAX_PATH = 107
"""Longest socket path in bytes: sun_path of unix(7), less its closing zero."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ELSEWHERE = "Set XDG_RUNTIME_DIR, or give a path in a folder of your own with --socket."


class SocketFile:
    """The lock and the bound socket, mode 0600, of one path; its folder is made (0700) if it is absent. A socket
    that the service manager has bound there is taken as it is, and stays when the daemon ends.

    Raises SocketInUse if a live daemon has the socket, NotTrusted if others may write to the folder, and ConfigError if
    the path cannot be used.
    """

    def __init__(self, path: Path) -> None:
        if len(os.fsencode(path)) > _MAX_PATH:
            raise ConfigError(
                f"the socket path {path} has {len(os.fsencode(path))} bytes; the system allows {_MAX_PATH}",
                hint="Choose a shorter path with --socket.",
            )
        self.path = path
        with contextlib.ExitStack() as opened:
            try:
                self._folder = _open_folder(path.parent)
                opened.callback(os.close, self._folder)
                self._lock = _take_lock(self._folder, path)
                opened.callback(os.close, self._lock)
                given = handed_over().take(path)
                self._is_given = given is not None
                if given is None:
                    self._remove_stale()
                self.sock = given or _bind(path)
                opened.callback(self.sock.close)
                self._inode = self._inode_now()
                if self._inode is None:
                    raise NotTrusted(f"the folder {path.parent} was replaced meanwhile", hint=_ELSEWHERE)
            except OSError as e:
                raise ConfigError(f"cannot serve on {path}: {e.strerror or e}") from e
            opened.pop_all()

    def remove(self) -> None:
        """Remove the socket; one that another has put in its place stays, and one that the service manager has."""
        if self._is_given:
            return
        with contextlib.suppress(OSError):
            if self._inode_now() == self._inode:
                os.unlink(self.path.name, dir_fd=self._folder)

    def release(self) -> None:
        """Another daemon may take the path. The lock file stays: if it were deleted, one daemon could lock the deleted
        file while another locks a new one."""
        os.close(self._lock)
        os.close(self._folder)

    def _inode_now(self) -> int | None:
        try:
            return os.stat(self.path.name, dir_fd=self._folder, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return None

    def _remove_stale(self) -> None:
        path = self.path
        try:
            mode = os.stat(path.name, dir_fd=self._folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigError(f"{path} exists and is not a socket", hint="Give another path with --socket.")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                log.info("removing the socket that a dead daemon left: %s", path)
                os.unlink(path.name, dir_fd=self._folder)
                return
            except OSError as e:
                raise SocketInUse(f"something holds {path}: {e.strerror or e}") from e
        raise SocketInUse(f"something answers on {path}")


def _open_folder(folder: Path) -> int:
    """The folder, open, that nobody but this user and root can change. Raises NotTrusted, OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink():
        raise NotTrusted(f"the socket's folder {folder} is a symbolic link", hint="Give the folder that it leads to.")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _refuse_shared(folder, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_shared(folder: Path, info: os.stat_result) -> None:
    if info.st_uid not in (os.geteuid(), 0):
        raise NotTrusted(
            f"the socket's folder {folder} belongs to user {info.st_uid}, not to user {os.geteuid()} or root: "
            "its owner could put another socket there",
            hint=_ELSEWHERE,
        )
    # In a folder with the sticky bit (/tmp) nobody can remove or rename what is another's.
    if info.st_mode & _OTHERS_WRITE and not info.st_mode & stat.S_ISVTX:
        raise NotTrusted(
            f"others may write to the socket's folder {folder} (mode {stat.S_IMODE(info.st_mode):04o}): "
            "they could put another socket there",
            hint=f"chmod go-w {folder}, or give a path in another folder with --socket.",
        )


def _take_lock(folder: int, path: Path) -> int:
    """The lock, held (a file descriptor). Raises SocketInUse, NotTrusted, OSError."""
    name = f"{path.name}.lock"
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise NotTrusted(f"{path}.lock is a symbolic link", hint=f"Look who made it, and remove it. {_ELSEWHERE}")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    lock = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        info = os.fstat(lock)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
            raise NotTrusted(
                f"{path}.lock is not a file of user {os.geteuid()}",
                hint=f"Look who made it, and remove it. {_ELSEWHERE}",
            )
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SocketInUse(f"another daemon holds {path}.lock") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # a chmod after bind would leave a moment in which others may connect
    try:
        sock.bind(str(path))
        sock.listen()  # at once: whoever waits for the file to appear may connect
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock

"""Finds the master key: in the environment, in a file beside the store, or in the kernel's keyring.

Law: an unusable key is a ConfigError, never a reason to go on without one; the key appears in no message. In all three
places it is written as 64 hexadecimal digits.

    LLMAAS_MASTER_KEY      used before anything else, if it is set
    <data_dir>.key         mode 0600, made at the first start; beside the store, so that a copy of the store lacks it
    keyring                a key of type "user" named "llmaas"; kept in RAM by the kernel, put there by another program

The keyring is read by system calls through ctypes (keyctl(2), three operations), because the packages for it need the
library or the program of keyutils, which small systems do not have.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import stat
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from llmaas.data_folder import beside
from llmaas.errors import ConfigError
from llmaas.frozen import frozen
from llmaas.kvchunks.store.cipher import KEY_BYTES, MasterKey
from llmaas.regular_file import sync_folder

VARIABLE = "LLMAAS_MASTER_KEY"
FILE, KEYRING = "file", "keyring"
KEY_NAME = b"llmaas"
_MAKE_ONE = "openssl rand -hex 32"


@frozen
class Found:
    """A master key and, for messages, where it was found."""

    key: MasterKey
    origin: str


def find(data_dir: Path, source: str, environ: Mapping[str, str], *, make: bool) -> Found | None:
    """The master key of the store in ``data_dir``; ``source`` is FILE or KEYRING.

    A missing or empty file (a start was killed) is made if ``make`` is True; otherwise it gives None. Raises
    ConfigError.
    """
    if VARIABLE in environ:
        return Found(_parsed(environ[VARIABLE], f"the variable {VARIABLE}"), f"the variable {VARIABLE}")
    if source == KEYRING:
        return Found(_parsed(_from_keyring(), "the key 'llmaas' of the kernel's keyring"), "the kernel's keyring")
    path = key_file(data_dir)
    try:
        if not make and not (path.exists() and path.stat().st_size):
            return None
        return Found(_parsed(_from_file(path), str(path)), str(path))
    except OSError as error:
        hint = f"Set {VARIABLE}, or 'encrypt = false'."
        if error.errno == errno.EROFS:
            hint = "Mount the disk for writing, or give another --data-dir."
        raise ConfigError(f"cannot read or make the master key {path}: {error.strerror}", hint=hint) from error


def key_file(data_dir: Path) -> Path:
    """The file beside the data folder that holds the master key of its stores."""
    return beside(data_dir, ".key")


def _parsed(text: str, origin: str) -> MasterKey:
    if not re.fullmatch(rf"\s*[0-9a-fA-F]{{{2 * KEY_BYTES}}}\s*", text):
        raise ConfigError(
            f"{origin} is no master key: it must be {2 * KEY_BYTES} hexadecimal digits",
            hint=f"Make one with: {_MAKE_ONE}",
        )
    return MasterKey(bytes.fromhex(text.strip()))


def _from_file(path: Path) -> str:
    """The file's text. A missing or empty file (a start was killed) gets a new key. Raises OSError, ConfigError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # two first starts at the same time must get the same key
        info = os.fstat(fd)
        if stat.S_IMODE(info.st_mode) & 0o077:
            raise ConfigError(f"others may read the master key {path}", hint=f"chmod 600 {path}")
        if not info.st_size:
            os.write(fd, os.urandom(KEY_BYTES).hex().encode() + b"\n")
            os.fsync(fd)
            sync_folder(path.parent)
        return os.pread(fd, 256, 0).decode("ascii", "replace")
    finally:
        os.close(fd)


# -- the kernel's keyring (keyctl(2), keyrings(7))

_KEYCTL = {  # (machine, bytes of a pointer) -> number of the system call
    ("x86_64", 8): 250,
    ("x86_64", 4): 288,
    ("i686", 4): 288,
    ("aarch64", 8): 219,
    ("aarch64", 4): 311,
    ("armv7l", 4): 311,
    ("armv6l", 4): 311,
    ("riscv64", 8): 219,
}
_LINK, _SEARCH, _READ = 8, 10, 11
_PROCESS, _SESSION, _USER = -2, -3, -4


def _from_keyring() -> str:
    # A process may read a key that its own keyrings lead to. Not every login links the user's keyring to the session's,
    # so it is linked to the process's. If that fails, a key in the session's keyring can still be found.
    _keyctl(_LINK, _USER, _PROCESS)
    for keyring in (_SESSION, _PROCESS):
        if (key := _keyctl(_SEARCH, keyring, b"user", KEY_NAME, 0)) >= 0:
            buffer = ctypes.create_string_buffer(256)
            size = _keyctl(_READ, key, buffer, len(buffer), 0)
            if 0 <= size <= len(buffer):
                return buffer.raw[:size].decode("ascii", "replace")
    raise ConfigError(
        "the kernel's keyring has no key 'llmaas' that this process may read",
        hint=f'Put one there: keyctl add user llmaas "$({_MAKE_ONE})" @u (keep a copy: a reboot forgets it).',
    )


def _keyctl(operation: int, *arguments: object) -> int:
    """keyctl(2)'s own return value, -1 for any failure. Raises ConfigError where its number is not known."""
    number = _KEYCTL.get((platform.machine(), struct.calcsize("P")))
    if number is None or hasattr(sys, "getandroidapilevel"):  # Android ends apps that make this call
        raise ConfigError(
            f"llmaas cannot read the kernel's keyring on {platform.machine()}", hint=f"Use a file, or {VARIABLE}."
        )
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in (number, operation, *arguments)]
    return int(ctypes.CDLL(None).syscall(*values))

"""What the host tells the guest when it starts: the key, who owns the machine, what it is to do.

Law: values and bytes only. It goes by a serial port of its own, from memory to memory: never on a command line, which
every process of the host may read, and in no file. ``repr`` does not show the key.

    +-----------------------+-------------+
    | u32 big-endian length | msgpack map |
    +-----------------------+-------------+
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import asdict, field

import msgpack  # type: ignore[import-untyped,unused-ignore]

from llmaas.errors import ConfigError
from llmaas.frozen import frozen

MOST_BYTES = 64 << 10
_LENGTH = struct.Struct(">I")
FEWEST_KEY, MOST_KEY = 16, 8192
"""Bytes of a key. cryptsetup takes no more than 8 MiB, and fewer than 16 can be guessed."""


@frozen
class BootMessage:
    key: bytes = field(repr=False)
    uid: int = 0
    """Of who owns the machine: the daemon in the guest runs as this user, so that names of apps are as on the host."""
    daemon: tuple[str, ...] = ("llmaas", "serve")
    """The Python module that is run as the daemon, and its first arguments."""
    flags: tuple[str, ...] = ()
    """More arguments, of the user's."""
    has_model: bool = False
    """Whether there is a volume with the model's file; without one the daemon is given no model."""
    import_bytes: int | None = None
    """The guest is to write so many bytes of the disk ``import`` to the model's volume, as ``model``, and to end."""
    model: str = ""
    """The name of the model's file."""
    slots: int = 0
    """Memories that the guest's bus has for slots, and the daemon is to have."""


def encode_boot(message: BootMessage) -> bytes:
    body: bytes = msgpack.packb(asdict(message))
    if len(body) > MOST_BYTES:
        raise ConfigError(f"the daemon's arguments and the key are {len(body)} bytes; at most {MOST_BYTES} are allowed")
    return _LENGTH.pack(len(body)) + body


def read_boot(read: Callable[[int], bytes]) -> BootMessage:
    """The message that ``read(n)`` gives bytes of, n at most. Raises ValueError."""
    (size,) = _LENGTH.unpack(_exactly(read, _LENGTH.size))
    if size > MOST_BYTES:
        raise ValueError(f"the boot message is said to have {size} bytes")
    found = msgpack.unpackb(_exactly(read, size))
    found["daemon"], found["flags"] = tuple(found["daemon"]), tuple(found["flags"])
    return BootMessage(**found)


def check_key(key: bytes, origin: str) -> bytes:
    """Raises ConfigError for what is no key."""
    if not FEWEST_KEY <= len(key) <= MOST_KEY:
        raise ConfigError(
            f"the key ({origin}) has {len(key)} bytes; {FEWEST_KEY} to {MOST_KEY} are wanted",
            hint="'llmaas vm key FILE' makes one of 32 random bytes.",
        )
    return key


def _exactly(read: Callable[[int], bytes], n: int) -> bytes:
    found = b""
    while len(found) < n:
        part = read(n - len(found))
        if not part:
            raise ValueError("the boot message ends too soon")
        found += part
    return found

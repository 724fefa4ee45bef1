"""Bounds of what peers may make the server hold, and for how long.

Law: values only.
"""

from __future__ import annotations

from dataclasses import replace

from llmaas.api.frame_reader import SMALL_FRAME
from llmaas.api.wire import MAX_FRAME
from llmaas.errors import ConfigError
from llmaas.frozen import frozen

OPERATOR_CONNECTIONS = 16
OWN_FILES = 80
"""Files that the daemon has open for itself at most: about 25 at rest, and three for each thread that reads the index,
one for each that reads or writes chunks, adapters or limits of the system."""
FEWEST_CONNECTIONS = 16


@frozen
class Limits:
    """Bounds of one server. Raises ValueError for bounds that cannot work together."""

    max_frame: int = MAX_FRAME
    """Bytes of one frame's body."""
    max_connections: int = 256
    """Connections that have said hello, of all apps."""
    app_connections: int = 64
    """Connections of one app."""
    waiting_connections: int = 64
    """Connections that have not said hello yet, or are over and not closed; the oldest is dropped for the next."""
    max_in_flight: int = 64
    """Requests of one connection that run at once."""
    tasks: int = 256
    """Requests other than append and generate that run at once, of all apps."""
    app_tasks: int = 64
    """The same of one app."""
    buffer_bytes: int = 4 * MAX_FRAME
    """Large frames, for as long as their requests run, and replies that are not read: of all connections together."""
    app_buffer_bytes: int = 2 * MAX_FRAME
    """The same for one app."""
    write_buffer: int = 2 * MAX_FRAME
    """Bytes of replies that a peer may leave unread before it is dropped."""
    priority_floor: int = 0
    """The most urgent priority that calls may have, but for the operator's and those of ``urgent_apps``."""
    urgent_apps: frozenset[str] = frozenset()
    """Apps whose calls may have any priority: a name, of any user, or ``uid/name``."""
    hello_s: float = 10.0
    """Seconds within which a new connection must say hello."""
    frame_s: float = 10.0
    """Seconds within which a frame that has begun must be complete."""
    write_s: float = 30.0
    """Seconds within which a peer that left more than ``SMALL_FRAME`` bytes of replies unread must read them."""

    def within(self, n_files: int) -> Limits:
        """With no more connections than a process with so many files open can have. Raises ConfigError if that is too
        few to serve anybody."""
        room = n_files - OWN_FILES - 2 * OPERATOR_CONNECTIONS
        if room >= self.max_connections + self.waiting_connections:
            return self
        if room < FEWEST_CONNECTIONS:
            least = n_files - room + FEWEST_CONNECTIONS
            raise ConfigError(
                f"the daemon may have {n_files} files open, and needs {least} at least",
                hint="Raise the limit: LimitNOFILE= in a systemd unit, 'ulimit -n' in a shell.",
            )
        waiting = min(self.waiting_connections, room // 4)
        most = min(self.max_connections, room - waiting)
        return replace(
            self,
            max_connections=most,
            app_connections=min(self.app_connections, max(1, most // 4)),
            waiting_connections=waiting,
        )

    def for_operator(self) -> Limits:
        """Those of the operator's own socket: room for few connections, that apps cannot take."""
        most = min(self.max_connections, OPERATOR_CONNECTIONS)
        places = replace(self, max_connections=most, app_connections=most, waiting_connections=most)
        return replace(places, buffer_bytes=self.app_buffer_bytes)

    def __post_init__(self) -> None:
        if self.max_frame < SMALL_FRAME:
            raise ValueError(f"max_frame must be at least {SMALL_FRAME} bytes, not {self.max_frame}")
        if self.write_buffer < 2 * self.max_frame:
            raise ValueError(f"write_buffer must hold two frames of {self.max_frame} bytes, not {self.write_buffer}")
        for name in (
            "max_connections",
            "app_connections",
            "waiting_connections",
            "max_in_flight",
            "tasks",
            "app_tasks",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("hello_s", "frame_s", "write_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")


DEFAULT_LIMITS = Limits()

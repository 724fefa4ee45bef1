"""Bounds of what peers may make the server hold.

Law: values only.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmaas.api.wire import MAX_FRAME


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server. Raises ValueError for bounds that cannot work together."""

    max_frame: int = MAX_FRAME
    """Bytes of one frame's body."""
    max_connections: int = 256
    max_in_flight: int = 64
    """Requests of one connection that run at once."""
    write_buffer: int = 2 * MAX_FRAME
    """Bytes of replies that a peer may leave unread before it is dropped."""
    hello_s: float = 10.0
    """Seconds within which a new connection must say hello."""

    def __post_init__(self) -> None:
        if self.max_frame < 16384:
            raise ValueError(f"max_frame must be at least 16384 bytes, not {self.max_frame}")
        if self.write_buffer < 2 * self.max_frame:
            raise ValueError(f"write_buffer must hold two frames of {self.max_frame} bytes, not {self.write_buffer}")
        if self.max_connections < 1 or self.max_in_flight < 1 or not self.hello_s > 0:
            raise ValueError("max_connections and max_in_flight must be at least 1, hello_s above 0")


DEFAULT_LIMITS = Limits()

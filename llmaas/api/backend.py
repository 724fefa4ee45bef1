"""What the server needs: the Backend that it serves, and its Limits.

Law: nothing here acts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llmaas.api.wire import MAX_FRAME
from llmaas.calls import CallSpec, Done, Piece
from llmaas.records import AdapterInfo, AppId, ContextDetail, ContextInfo, RequestId


class AdapterBackend(Protocol):
    """The LoRA adapters of a Backend."""

    def infos(self, *, paths: bool) -> list[AdapterInfo]: ...

    async def add(self, name: str, path: str) -> AdapterInfo: ...

    async def remove(self, name: str) -> None: ...


class Backend(Protocol):
    """What the server serves. Every method runs on the event loop's thread and may raise LlmaasError.

    ``app`` None, in contexts, show and delete, means every app's contexts.
    """

    def hello(self) -> dict[str, object]:
        """Facts for the hello reply: plain msgpack values."""

    @property
    def adapters(self) -> AdapterBackend: ...

    async def create(self, app: AppId, *, name: str | None, system: str | None, adapter: str = "") -> ContextInfo: ...

    async def fork(self, app: AppId, context: str, *, name: str | None) -> ContextInfo: ...

    async def truncate(
        self, app: AppId, context: str, *, n_tokens: int | None, n_messages: int | None
    ) -> ContextInfo: ...

    def hint(self, app: AppId, context: str) -> None:
        """The context will be used soon: it may be brought back now. Returns at once."""

    async def delete(self, app: AppId | None, context: str) -> None: ...

    def contexts(self, app: AppId | None) -> list[ContextInfo]: ...

    def show(self, app: AppId | None, context: str) -> ContextDetail: ...

    def submit(
        self,
        app: AppId,
        context: str,
        spec: CallSpec,
        emit: Callable[[Piece], None],
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        """Start a call. ``emit`` is called on the loop's thread, per piece."""

    def cancel(self, request: RequestId) -> None:
        """End a call: its future then raises Cancelled, unless it was done before."""

    def prioritize(self, request: RequestId, priority: int) -> None:
        """Change how urgent a call is; one that has ended already is left alone."""

    def limit(self, app: AppId | None, rate: float | None) -> dict[str, object]:
        """Set an app's, or everyone's, tokens per second; tell what holds now."""

    def stats(self) -> dict[str, object]: ...

    def budget(self, pool_bytes: int | None, disk_bytes: int | None) -> dict[str, object]:
        """Set the budgets that are given, and tell what holds now."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what peers may make the server hold."""

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

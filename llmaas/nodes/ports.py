"""What this package wants of a service: contexts that leave, and contexts that arrive.

Law: types only. ``service.departures`` and ``service.arrivals`` say what each does and raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from llmaas.api.transfer_messages import Import
from llmaas.api.transfer_records import ChunkPiece, ExportedChunks, ImportedChunks, MovedTurn
from llmaas.calls import CallSpec, Done, Piece
from llmaas.errors import LlmaasError
from llmaas.kvchunks.store.move_rows import MoveRow
from llmaas.records import AppId, ContextId, ContextInfo, ExportedContext, RequestId


class SentContext(Protocol):
    exported: ExportedContext

    @property
    def adapter(self) -> str: ...

    @property
    def ttl(self) -> float | None: ...

    async def chunks(self, indices: tuple[int, ...], offset: int, n_bytes: int) -> ExportedChunks: ...


class GrowingContext(SentContext, Protocol):
    def tokens_from(self, n_tokens: int) -> bytes: ...


class LeavingContext(SentContext, Protocol):
    row: MoveRow | None
    turns: tuple[MovedTurn, ...]

    @property
    def is_answered(self) -> bool: ...

    def goes_on_there(self, ask: Callable[[CallSpec, Callable[[Piece], None]], Awaitable[Done]]) -> None: ...

    def goes_on_here(self) -> None: ...

    def answer_fails(self, error: LlmaasError) -> None: ...

    async def begin(self, move: str, node: str) -> None: ...

    async def stays(self) -> None: ...

    async def is_gone(self, node: str) -> None: ...

    async def settled(self) -> None: ...


class Departures(Protocol):
    async def answered(self, app: AppId, context: str) -> GrowingContext | None: ...

    def departure(self, app: AppId, context: str) -> AbstractAsyncContextManager[LeavingContext]: ...

    def departure_in_doubt(self, row: MoveRow) -> AbstractAsyncContextManager[LeavingContext | None]: ...

    async def known(self) -> list[MoveRow]: ...

    async def forget(self, row: MoveRow) -> None: ...


class Arrivals(Protocol):
    most_tokens: int
    most_text: int

    def refuse(self, app: AppId, asked: Import, kv: bytes) -> bool: ...

    async def arrive(
        self, move: str, node: str, app: AppId, asked: Import, turns: Sequence[MovedTurn] = ()
    ) -> ContextInfo: ...

    async def take_chunks(
        self, row: MoveRow, root: bytes, kv: bytes, pieces: tuple[ChunkPiece, ...]
    ) -> ImportedChunks: ...

    def answer(
        self, row: MoveRow, spec: CallSpec, emit: Callable[[Piece], None]
    ) -> tuple[RequestId, asyncio.Future[Done]]: ...

    def cancel(self, request: RequestId) -> None: ...

    async def stage(self, move: str, node: str, app: AppId, asked: Import) -> ContextInfo: ...

    async def take_staged(
        self, context: ContextId, root: bytes, kv: bytes, pieces: tuple[ChunkPiece, ...], *, computes: bool = False
    ) -> ImportedChunks: ...

    def n_begun(self, context: ContextId) -> int: ...

    def compute_s(self, n_tokens: int) -> float: ...

    async def bring(self, context: ContextId, tokens: bytes) -> int: ...

    async def unstage(self, context: ContextId) -> None: ...

    async def arrive_staged(
        self, move: str, node: str, app: AppId, asked: Import, context: ContextId, turns: Sequence[MovedTurn] = ()
    ) -> ContextInfo: ...

    async def find(self, move: str) -> MoveRow | None: ...

    async def settle(self, row: MoveRow) -> None: ...

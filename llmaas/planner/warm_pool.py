"""Warming the POOL: chunks of contexts that are expected are read from DISK while nobody calls.

Law: it takes room in the POOL that is free, and nothing else: no copy leaves for it. While there is a call it begins
nothing, and what is under way then is a small piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.actions import Action, FetchChunks
from llmaas.planner.context import Context
from llmaas.planner.events import Fetched
from llmaas.planner.pool_books import PoolBooks
from llmaas.planner.pool_room import PoolRoom
from llmaas.records import CHUNK_TOKENS, ChunkKey

_PIECE_BYTES = 4 << 20
"""Bytes of one read: some 10 ms, for which a call may have to wait."""


class WarmPool:
    """The contexts that are still to be read, and the piece under way."""

    def __init__(self, ledger: Ledger, room: PoolRoom, books: PoolBooks, next_id: Callable[[], int]) -> None:
        self._ledger, self._room, self._books, self._next_id = ledger, room, books, next_id
        self._expected: deque[Context] = deque()
        self._under_way: tuple[FetchChunks, list[int]] | None = None
        """With the tokens of its chunks."""

    @property
    def idle(self) -> bool:
        """Nothing is being read."""
        return self._under_way is None

    def expect(self, contexts: Iterable[Context]) -> None:
        """Read what only DISK has of as many of these contexts as the POOL has free room for, the first ones first."""
        ledger, chosen = self._ledger, deque[Context]()
        left = ledger.pool_budget - ledger.pool_used
        for context in contexts:
            chunks = map(ledger.chunk, context.keys)
            left -= sum(chunk.disk_bytes for chunk in chunks if chunk.to_read)
            if left < 0:
                break
            chosen.append(context)
        self._expected = chosen

    def stop(self) -> None:
        """Read no more."""
        self._expected.clear()

    def pump(self, out: list[Action]) -> None:
        """Begin the next piece, unless one is under way. There is no call."""
        while self._expected and self._under_way is None:
            context = self._expected[0]
            keys, tokens = self._piece(context, out)
            if keys:
                action = FetchChunks(self._next_id(), context.id, tuple(keys))
                self._under_way = action, tokens
                out.append(action)
            else:
                self._expected.popleft()

    def fetched(self, event: Fetched, now: float, out: list[Action]) -> bool:
        """A piece was read, or a part of it was. False if it was for somebody else."""
        if self._under_way is None or self._under_way[0].fetch != event.fetch:
            return False
        action, tokens = self._under_way
        self._under_way = None
        self._books.end_fetch(action, event, tokens, None, now, out)
        return True

    def _piece(self, context: Context, out: list[Action]) -> tuple[list[ChunkKey], list[int]]:
        """The next chunks of a context, with their tokens; their room is reserved. Empty if no more of it can come."""
        ledger, nbytes = self._ledger, 0
        keys, tokens = list[ChunkKey](), list[int]()
        for i, key in enumerate(context.keys):
            chunk = ledger.chunk(key)
            if not chunk.to_read:
                continue
            more = chunk.disk_bytes
            if ledger.pool_used + more > ledger.pool_budget or (keys and nbytes + more > _PIECE_BYTES):
                break
            if not self._books.begin_fetch(key, out):
                break
            self._room.expected(key, (context.id, i))
            nbytes += more
            keys.append(key)
            tokens.append(context.end_of(i) - i * CHUNK_TOKENS)
        return keys, tokens

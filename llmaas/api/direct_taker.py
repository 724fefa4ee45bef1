"""Pieces of an answer that are taken as they come, without a task that wakes up for each.

Law: pieces are taken in order, one after another, and none while what became of the one before is still waited for.
What the taker raises ends nothing but this answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from llmaas.api.client_session import Exchange
from llmaas.calls import Piece

Take = Callable[[Piece], Awaitable[None] | None]


class DirectTaker:
    """Gives the pieces of ``exchange`` to ``take``; ``wake`` wakes up who is to look after it."""

    def __init__(self, exchange: Exchange, take: Take, wake: Callable[[], None]) -> None:
        self._exchange, self._take, self._wake = exchange, take, wake
        self._rest: Awaitable[None] | None = None
        self._failure: Exception | None = None

    def begin(self) -> Awaitable[None] | None:
        """Give it what has come already, and from then on what comes. What is returned must be awaited first, and then
        this is to be called again."""
        rest, self._rest = self._rest, None
        pieces = self._exchange.pieces
        while rest is None and pieces:
            rest = self._take(pieces.popleft())
        if rest is None:
            self._exchange.take = self._taken
        return rest

    def end(self) -> None:
        """Pieces that come from now on are kept."""
        self._exchange.take = None

    def raise_failure(self) -> None:
        """Raise what ``take`` has raised."""
        if self._failure is not None:
            raise self._failure

    def _taken(self, piece: Piece) -> None:
        try:
            self._rest = self._take(piece)
        except Exception as error:  # who receives from the daemon must not fail for it
            self._failure = error
        if self._rest is not None or self._failure is not None:
            self.end()
            self._wake()

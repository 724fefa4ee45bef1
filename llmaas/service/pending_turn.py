"""A turn that stands in its context's memory and not yet in the store.

Law: written by the call's runner only, on the event loop, while the call holds the context's lock.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from llmaas.calls import Turn
from llmaas.kvchunks.store.store import Span
from llmaas.service.live_context import LiveContext, MessageMark, total_tokens


@dataclass(slots=True)
class Shift:
    """What a call has dropped of its context so far, to make room.

    ``tokens`` and ``marks`` are the context as the store has it; ``kept`` are the store's spans that stay, ``dropped``
    counts the tokens of the others.
    """

    tokens: array[int]
    marks: list[MessageMark]
    kept: list[Span]
    dropped: int = 0


@dataclass(slots=True, eq=False)
class PendingTurn:
    """What a call adds to its context before the answer, and what must be undone if the call fails."""

    live: LiveContext
    turn: Turn
    base: int = 0
    """Tokens of the context before the call, less those that ``shift`` dropped."""
    spans: list[Span] = field(default_factory=list)
    """What the turn adds, the text that opens the answer included."""
    shift: Shift | None = None
    adapter_before: tuple[str, bytes] | None = None
    """The adapter's name and the root of the chunk keys that the context had, if the call changed them."""

    @property
    def n_prompt(self) -> int:
        """Tokens that the turn adds before the answer."""
        return total_tokens(self.spans)

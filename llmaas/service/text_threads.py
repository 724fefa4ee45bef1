"""The threads on which text becomes tokens: chat templates and the tokenizer take time that grows with the text.

Law: an app's long texts hold up other apps' long texts by one at most, and short ones not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llmaas.calls import Turn
from llmaas.fair_thread import FairThread
from llmaas.records import AppId
from llmaas.service.live_context import LiveContext

T = TypeVar("T")

SHORT_CHARACTERS = 1 << 15
SHORT_MESSAGES = 128
SHORT_TOKENS = 1 << 14
"""What a turn, and a context that is rendered for it, may have to be short: some 50 ms of work."""


class TextThreads:
    """Two threads, on each of which apps take turns; they begin with this object."""

    def __init__(self) -> None:
        self._short, self._long = FairThread("text"), FairThread("long-text")

    async def run(self, live: LiveContext, turn: Turn | None, do: Callable[..., T], *args: object) -> T:
        """``do(*args)``, which reads ``turn``, or a whole conversation, for the context.

        A caller that is cancelled meanwhile waits for the end, so that its lock guards what ``do`` looks at. Raises
        what ``do`` raises, and ShuttingDown after ``close``.
        """
        thread = self._short if turn is not None and _is_short(live, turn) else self._long
        return await thread.run_to_end(live.row.app, do, *args)

    async def run_long(self, app: AppId, do: Callable[..., T], *args: object) -> T:
        """``do(*args)``, which takes time that grows with the app's text, and reads nothing that a lock guards."""
        return await self._long.run(app, do, *args)

    async def run_apart(self, app: AppId, turn: Turn, do: Callable[..., T], *args: object) -> T:
        """``do(*args)``, which reads a turn that is of no context, and nothing that a lock guards."""
        return await (self._short if _is_short_turn(turn) else self._long).run(app, do, *args)

    def close(self, *, wait: bool = True) -> None:
        """Take no more jobs; those that wait end with ShuttingDown. ``wait``: until what runs has ended."""
        for thread in (self._short, self._long):
            thread.close(finish=False, wait=wait)


def _is_short(live: LiveContext, turn: Turn) -> bool:
    n_past = 0 if turn.prompt is not None else len(live.tokens)
    return _is_short_turn(turn) and n_past <= SHORT_TOKENS


def _is_short_turn(turn: Turn) -> bool:
    n = len(turn.prompt or "") + sum(len(message.content) for message in turn.messages)
    return n <= SHORT_CHARACTERS and len(turn.messages) <= SHORT_MESSAGES

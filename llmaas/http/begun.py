"""A coroutine that is run at once, as far as it comes without waiting.

Law: what it does and in which order is as if it had been awaited.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator
from functools import partial
from typing import Any


def begun(coroutine: Coroutine[Any, Any, None]) -> Awaitable[None] | None:
    """Run the coroutine without a task until it waits for something; None if it has ended by then. Else what is
    returned must be awaited: it runs the rest.

    It may use nothing of a task that it runs in, such as timeouts.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return _Begun(coroutine, waits_for)


class _Begun:
    """A coroutine that waits for ``waits_for``."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine, self._waits_for = coroutine, waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        """As the event loop's tasks run a coroutine: what it waits for goes out, what came of that goes in."""
        waits_for = self._waits_for
        while True:
            try:
                came = yield waits_for
            except BaseException as error:
                resume = partial(self._coroutine.throw, error)
            else:
                resume = partial(self._coroutine.send, came)
            try:
                waits_for = resume()
            except StopIteration:
                return

"""Tells one peer, while requests of it run, how long it takes until the model's weights are in memory again.

Law: it tells nothing while they are there, and at most once a second; a peer whose requests have ended is told nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llmaas.api import replies
from llmaas.api.wire import encode
from llmaas.calls import Loading

FIRST_S, EVERY_S = 0.05, 1.0
"""After a request has come: what takes less is not worth telling, and reading has begun by then. Between two."""


class LoadingTeller:
    """``loading``: what the weights are waited for, if they are. ``running``: whether any request of the peer runs."""

    def __init__(
        self, loading: Callable[[], Loading | None], running: Callable[[], bool], write: Callable[[bytes], None]
    ) -> None:
        self._loading, self._running, self._write = loading, running, write
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def asked(self) -> None:
        """A request has come."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(FIRST_S, self._tell)

    def close(self) -> None:
        """Tell nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self._timer = None
        if not self._running() or (found := self._loading()) is None:
            return
        self._write(encode(replies.loading_frame(found)))
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._tell)

"""Who uses the daemon while it is attacked: an app that asks, one that pings, one that connects, and the operator.

Each is a thread of its own, does one thing at a time, and notes how long it took.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llmaas.api.client import Client
from llmaas.errors import LlmaasError
from llmaas.records import Message

QUESTION = "What is the difference between a cache and a buffer, and which one of them would you rather have? "
"""118 tokens of the fake engine, with the chat template."""
ANSWER_TOKENS = 4
PING_EVERY_S, CONNECT_EVERY_S, ASK_EVERY_S = 0.005, 0.1, 0.25
"""Seconds between two. The app that asks uses a third of the engine: with more than half, its share, it is to wait."""


@dataclass
class Times:
    """Seconds that each of one kind took, and what failed."""

    took: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def quantile(self, q: float) -> float:
        """The time that a part ``q`` of all do not exceed (nearest rank); 0.0 if there are none."""
        found = sorted(self.took)
        return found[math.ceil(q * len(found)) - 1] if found else 0.0

    @property
    def longest(self) -> float:
        return max(self.took, default=0.0)


@dataclass
class Experience:
    """What the victims saw in a stretch of time."""

    first_token: Times = field(default_factory=Times)
    ping: Times = field(default_factory=Times)
    newcomer: Times = field(default_factory=Times)
    operator: Times = field(default_factory=Times)

    @property
    def failed(self) -> list[str]:
        kinds = {"ask": self.first_token, "ping": self.ping, "newcomer": self.newcomer, "operator": self.operator}
        return [f"{kind}: {what}" for kind, times in kinds.items() for what in times.failed]


class Victims:
    """``newcomers``: whether anybody connects, or only those that are there already use the daemon."""

    def __init__(self, socket: Path, *, newcomers: bool = True) -> None:
        self._socket = socket
        self.now = Experience()
        self._stop = threading.Event()
        works = {"first_token": self._ask, "ping": self._ping}
        works |= {"newcomer": self._come, "operator": self._operate} if newcomers else {}
        self._threads = [threading.Thread(target=self._go_on, args=work, daemon=True) for work in works.items()]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def next(self) -> Experience:
        """What was seen since the last call."""
        seen, self.now = self.now, Experience()
        return seen

    def wait_for_a_token(self, within: float) -> None:
        """Return when there was one since ``next``, or after ``within`` seconds."""
        until = time.monotonic() + within
        while not self.now.first_token.took and time.monotonic() < until:
            time.sleep(0.01)

    def stop(self) -> None:
        """Look no more at what happens: the daemon may end."""
        self._stop.set()

    def join(self, within: float) -> bool:
        """Whether all have come to an end."""
        until = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _go_on(self, kind: str, work: Callable[[], None]) -> None:
        """Do the work until ``stop``, on a new connection after each failure."""
        while not self._stop.is_set():
            try:
                work()
            except LlmaasError as error:
                if not self._stop.is_set():
                    times: Times = getattr(self.now, kind)
                    times.failed.append(f"{error.code}: {error.message}")
                    time.sleep(0.05)

    @contextmanager
    def _timed(self, times: Times) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            if not self._stop.is_set():
                times.took.append(time.monotonic() - begun)

    def _ask(self) -> None:
        with Client(self._socket, app="victim") as client:
            made = client.create().id
            while not self._stop.is_set():
                with self._timed(self.now.first_token):
                    stream = client.generate(made, [Message("user", QUESTION)], max_tokens=ANSWER_TOKENS)
                    next(stream)
                _ = stream.done
                client.truncate(made, n_tokens=0)
                self._stop.wait(ASK_EVERY_S)

    def _ping(self) -> None:
        with Client(self._socket, app="victim") as client:
            while not self._stop.is_set():
                with self._timed(self.now.ping):
                    client.ping()
                self._stop.wait(PING_EVERY_S)

    def _come(self) -> None:
        while not self._stop.is_set():
            with self._timed(self.now.newcomer), Client(self._socket, app="newcomer") as client:
                client.ping()
            self._stop.wait(CONNECT_EVERY_S)

    def _operate(self) -> None:
        while not self._stop.is_set():
            with self._timed(self.now.operator), Client(self._socket, app="operator", admin=True) as client:
                client.stats()
            self._stop.wait(CONNECT_EVERY_S)

"""The same request asked again after SIGTERM, SIGKILL or a cut connection: one turn is stored, and the same is told.

``python -m tests.stress.asked_again [--times N] [--real N] [--seed N]`` makes N requests with an idempotency key, each
disturbed at a random instant: the daemon is ended, or the connection is cut, before the answer begins, in the midst of
it, or when nobody has read the last reply yet. In half of the cases the client makes the request again by itself
(``retry_s``), in the others its user does. After each, exactly one turn more must be stored, with the answer that was
told; the request asked once more must be told that answer, and the same ``done``. On the fake engine, whose answers
depend on every byte of KV, a greedy answer must also be the one that nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmaas.api.client import Client
from llmaas.calls import Done, Generation, Sampling
from llmaas.errors import NotServing, ShuttingDown
from llmaas.records import ContextDetail, Message
from tests.stress.asked_again_daemon import FakeDaemon, RealDaemon
from tests.stress.daemon_under_test import CELLS
from tests.support.books import Book, Expected
from tests.support.oracle import Oracle

LONGEST_CONTEXT = 700
KINDS = ("SIGTERM", "SIGKILL", "cut")
WORDS = ("sea", "wind", "stone", "river", "lamp", "paper", "north", "winter", "bread", "road", "glass", "field")


class Left(Exception):
    """The client's user has gone."""


@dataclass
class Tally:
    requests: Counter[str] = field(default_factory=Counter)
    """By what disturbed them."""
    came: Counter[str] = field(default_factory=Counter)
    """When the disturbance came, as the client saw it."""
    stored: Counter[str] = field(default_factory=Counter)
    """What was stored of a turn when it was asked for again, where its user asked."""
    kept: int = 0
    """Errors that said how many tokens of the answer were kept."""
    drawn_otherwise: int = 0
    """Answers drawn by chance that were made anew and came out otherwise: the client said so."""

    def __str__(self) -> str:
        lines = [("disturbed by", self.requests), ("it came", self.came), ("asked again by the user", self.stored)]
        told = [f"{what}: " + ", ".join(f"{name} {n}" for name, n in sorted(found.items())) for what, found in lines]
        told.append(f"errors that said what was kept: {self.kept}")
        told.append(f"answers drawn by chance, made anew and otherwise, and said so: {self.drawn_otherwise}")
        return "\n".join(told)


@dataclass
class Asking:
    """One request, and what was told of it."""

    text: str
    n: int
    key: str
    sampled: bool

    def ask(self, client: Client, context: str) -> Any:
        sampling = Sampling(temperature=1.0) if self.sampled else Sampling()
        message = Message("user", self.text)
        return client.generate(context, [message], max_tokens=self.n, sampling=sampling, idempotency_key=self.key)


class Trials:
    """Requests in one context after the other."""

    def __init__(self, daemon: FakeDaemon | RealDaemon, seed: int, *, exact: bool) -> None:
        self.daemon, self.tally = daemon, Tally()
        self._rng, self._exact = random.Random(seed), exact
        self._oracle = Oracle(CELLS) if exact else None
        self._n = self._n_contexts = 0
        self._context, self._book, self._sampled, self._messages = "", Book(""), False, list[tuple[str, str]]()
        self._spent = 0.05 if exact else 0.8
        """Seconds that a request of 30 tokens took at last."""
        self._fire: Any = None

    def run(self, times: int) -> None:
        self.daemon.start()
        with self._alarm():
            for i in range(times):
                if not self._messages or self._context_is_long():
                    self._new_context()
                self._one(KINDS[i % 3], itself=i % 2 == 0)
        self.daemon.end(signal.SIGTERM)

    @contextlib.contextmanager
    def _alarm(self) -> Iterator[None]:
        before = signal.signal(signal.SIGALRM, lambda *_: self._disturb())
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _disturb(self) -> None:
        fire, self._fire = self._fire, None
        if fire is not None:
            fire()

    def _connect(self, retry_s: float = 0) -> Client:
        for _ in range(1000):
            with contextlib.suppress(NotServing):  # a connection that was cut late, or a daemon that is starting
                return Client(self.daemon.socket, app="asker", retry_s=retry_s)
            time.sleep(0.01)
        raise AssertionError("no daemon serves")

    def _context_is_long(self) -> bool:
        return sum(len(text) + 30 for _, text in self._messages) > LONGEST_CONTEXT

    def _new_context(self) -> None:
        self._n_contexts += 1
        self._sampled, self._messages = self._n_contexts % 4 == 0, []
        with self._connect() as client:
            self._context = client.create(name=f"c{self._n_contexts}").id
        self._book = Book("")

    # -- one request

    def _one(self, kind: str, *, itself: bool) -> None:
        self._n += 1
        text = f"{self._n}: " + " ".join(self._rng.choices(WORDS, k=self._rng.randint(1, 12)))
        asking = Asking(text, self._rng.randint(1, 60), f"key-{self._n}", self._sampled)
        self.tally.requests[kind] += 1
        self._fire = getattr(self, "_" + kind.lower())
        leaves = kind == "cut" and not itself and (not self._exact or self._rng.random() < 0.5)
        if leaves:
            self._fire = self._leave
        began = time.monotonic()
        text, done = self._by_itself(asking) if itself else self._by_its_user(asking)
        if self._fire is not None:  # it was quicker than the disturbance
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._spent = (time.monotonic() - began) * 30 / asking.n
            with contextlib.suppress(Left):
                self._disturb()
        self._check(asking, text, done)

    def _arm(self, asking: Asking) -> None:
        """Let the disturbance come at a random instant from now on."""
        signal.setitimer(signal.ITIMER_REAL, self._rng.uniform(0.0001, 1.2 * self._spent * asking.n / 30 + 0.01))

    def _sigterm(self) -> None:
        self.daemon.end(signal.SIGTERM)
        self.daemon.start()

    def _sigkill(self) -> None:
        self.daemon.end(signal.SIGKILL)
        self.daemon.start()

    def _cut(self) -> None:
        self.daemon.cut()

    def _leave(self) -> None:
        raise Left

    def _by_itself(self, asking: Asking) -> tuple[str, Done]:
        try:
            return self._patiently(asking)
        except NotServing as error:
            # Nothing was stored, and the KV that it is drawn from was coded meanwhile.
            assert self._sampled and "not the one that had begun" in error.message
        self.tally.drawn_otherwise += 1
        with self._connect() as client:
            stream = asking.ask(client, self._context)
            return "".join(piece.text for piece in stream), stream.done

    def _patiently(self, asking: Asking) -> tuple[str, Done]:
        with self._connect(retry_s=30) as client:
            self._arm(asking)
            stream, told, armed = asking.ask(client, self._context), "", True
            for piece in stream:
                if armed and self._fire is None:
                    self.tally.came["in the answer" if told else "before the answer"] += 1
                    armed = False
                told += piece.text
            done = stream.done
            if armed:
                self.tally.came["behind the last piece"] += 1
            assert told == stream.text
            return told, done

    def _by_its_user(self, asking: Asking) -> tuple[str, Done]:
        reads, told = self._rng.random() < 0.5, ""
        try:
            with self._connect() as client:
                self._arm(asking)
                stream = asking.ask(client, self._context)
                while not reads and self._fire is not None:
                    time.sleep(0.0005)  # and nobody reads
                for piece in stream:
                    told += piece.text
                self.tally.came["behind the last piece"] += 1
                return told, stream.done
        except (NotServing, ShuttingDown, Left) as error:
            kept = getattr(error, "n_tokens", None)
            self.tally.kept += kept is not None
        self.tally.came["in the answer" if told else "before the answer was read"] += 1
        with self._connect() as client:
            before = client.show(self._context)
            assert kept in (None, before.info.n_tokens)
            stream = asking.ask(client, self._context)
            again, done = "".join(piece.text for piece in stream), stream.done
            self.tally.stored[self._what_was_stored(before, again)] += 1
            if before.info.n_messages > len(self._messages) or (self._exact and not self._sampled):
                assert again.startswith(told), (told, again, kept, before, self._expected(asking))
            return again, done

    def _what_was_stored(self, before: ContextDetail, answer: str) -> str:
        new = before.messages[len(self._messages) :]
        if not new:
            return "nothing"
        return "the whole turn" if new[-1].content == answer else "a part of it"

    def _check(self, asking: Asking, text: str, done: Done) -> None:
        self._messages += [("user", asking.text), ("assistant", text)]
        with self._connect(retry_s=30) as client:
            shown = client.show(self._context)
            assert [(message.role, message.content) for message in shown.messages] == self._messages
            assert shown.info.n_tokens == done.n_tokens
            stream = asking.ask(client, self._context)
            assert ("".join(piece.text for piece in stream), stream.done) == (text, done)
            assert client.show(self._context).info.n_tokens == done.n_tokens
        if (expected := self._expected(asking)) is not None:
            assert (text, done.n_generated) == (expected.text, len(expected.drawn))
            self._book = expected.after()

    def _expected(self, asking: Asking) -> Expected | None:
        """What an undisturbed request is told; None if that is not known."""
        if self._oracle is None or self._sampled:
            return None
        return self._oracle.generate(self._book, [Message("user", asking.text)], None, Generation(asking.n))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000, help="requests to a daemon on the fake engine")
    parser.add_argument("--real", type=int, default=0, help="requests to 'llmaas serve' with the packaged model")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    for times, kind in ((args.times, FakeDaemon), (args.real, RealDaemon)):
        if times:
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="asked-") as root:
                trials = Trials(kind(Path(root)), args.seed, exact=kind is FakeDaemon)
                trials.run(times)
            print(f"{kind.__name__}: {times} requests, {time.monotonic() - began:.0f} s\n{trials.tally}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

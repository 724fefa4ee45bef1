"""Conversations move between two nodes while they are answered; half of the moves are hit by a fault.

``python -m tests.stress.live_moves --moves 500 [--seed 1]`` prints a summary as JSON, and fails if it found a fault.
Each move is of an answer that is under way, on the fake engine, while both nodes serve others. It may be hit within the
first moments: one node is killed by SIGKILL, or the link is cut, or becomes slow. After each, exactly one node must
have the conversation, with all that was acknowledged; whoever asked was told the tokens of the answer that an engine of
its own gives, each once and in order; and without a kill or a cut, all of them. At the end both nodes look at their
books and stores (``check``) and must find nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lib.slow_link import SlowLink, slow_link
from llmaas.calls import Generation, Terms
from llmaas.errors import LlmaasError
from llmaas.nodes.identity import own_identity
from llmaas.records import Message
from llmaas.service.span_records import imported_spans
from tests.stress.test_move_kill import LATE, Node
from tests.support.books import Book, Expected, book_of
from tests.support.daemon import CELLS
from tests.support.node_house import free_port, pin
from tests.support.oracle import Oracle

ANSWER = 60
RATE = 150.0
"""Tokens of an answer, and a second, so that a move comes in its middle."""
CONTEXTS = 5
MOST_TOKENS = 500
"""Of a conversation; then it is cut, and begins again."""
HIT_S = 0.4
SLOW_BITS = 2e6
FAULTS = ("source killed", "target killed", "link cut", "link slow")
HARMLESS = ("", "link slow")
WORDS = "the tide comes in and the tide goes out and nobody is at the harbour "


@dataclass
class LinkedNode:
    """``link``: by which the other one reaches it."""

    name: str
    node: Node
    link: SlowLink


class Asking:
    """Somebody asks, and reads until the answer ends."""

    def __init__(self, node: Node, context: str, text: str) -> None:
        self.tokens, self.done, self.error = list[int](), False, ""
        self._begun, self._args = threading.Event(), (node, context, text)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        node, context, text = self._args
        try:
            with node.client() as client:
                stream = client.generate(context, text, max_tokens=ANSWER, terms=Terms(rate=RATE))
                for piece in stream:
                    self.tokens += piece.tokens
                    self._begun.set()
                self.done = stream.done.n_generated == len(self.tokens)
        except (LlmaasError, OSError) as error:
            self.error = repr(error)
        finally:
            self._begun.set()

    def wait_begun(self) -> None:
        assert self._begun.wait(LATE)

    def end(self) -> None:
        self._thread.join(LATE)
        assert not self._thread.is_alive(), "the answer neither goes on nor ends"


@dataclass
class LiveMoves:
    """``verdict``: what is wrong."""

    nodes: tuple[LinkedNode, LinkedNode]
    seed: int
    tally: Counter[str] = field(default_factory=Counter)
    verdict: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._oracle = Oracle(CELLS - 1)
        self._where = {f"talk-{i}": self.nodes[i % 2] for i in range(CONTEXTS)}
        for name, at in self._where.items():
            with at.node.client() as client:
                client.create(name=name, system="Be brief.")

    def one(self) -> None:
        """Move one conversation while it is answered."""
        rng, name = self._rng, self._rng.choice(sorted(self._where))
        source = self._where[name]
        target = self.nodes[0] if source is self.nodes[1] else self.nodes[1]
        before = self._book(source, name)
        text = f"{self.tally['moves']}: {WORDS * rng.randrange(3)}"
        expected = self._oracle.generate(before, [Message("user", text)], None, Generation(max_tokens=ANSWER))
        assert expected is not None
        n = self.tally["moves"]
        kind = FAULTS[n // 2 % len(FAULTS)] if n % 2 else ""
        asking = Asking(source.node, name, text)
        asking.wait_begun()
        timer = threading.Timer(rng.uniform(0, HIT_S), hit, (kind, source, target))
        timer.start()
        moved = ""
        try:
            with source.node.client() as client:
                client.move(name, target.name)
        except (LlmaasError, OSError) as error:
            moved = repr(error)
        if not moved and len(asking.tokens) < ANSWER:
            self.tally["moved in the middle"] += 1
        timer.join()
        asking.end()
        self._mend()
        self.tally.update(["moves", kind or "no fault", "failed" if moved else "moved"])
        self._judge(name, kind, moved, asking, before, expected)

    def _judge(self, name: str, kind: str, moved: str, asking: Asking, before: Book, expected: Expected) -> None:
        told, what = tuple(asking.tokens), f"move {self.tally['moves']} of {name} ({kind or 'no fault'})"
        if told != expected.drawn[: len(told)]:
            self.verdict.append(f"{what}: told {told}, not {expected.drawn}")
        if kind in HARMLESS and (moved or not asking.done or told != expected.drawn):
            self.verdict.append(f"{what}: {len(told)} tokens were told, {moved} {asking.error}")
        try:
            at, book = self._owner(name)
        except TimeoutError as error:
            self.verdict.append(f"{what}: {error}")
            raise
        self._where[name] = at
        kept = book.messages[len(before.messages) :]
        whole = [*expected.prompted.messages[len(before.messages) :], ("assistant", expected.text)]
        if book.messages[: len(before.messages)] != before.messages:
            self.verdict.append(f"{what}: what was said before is not there")
        if asking.done and kept != whole:
            self.verdict.append(f"{what}: an answer that was acknowledged is not there: {kept}")
        if kept and (kept[:-1] != whole[:-1] or not expected.text.startswith(kept[-1][1])):
            self.verdict.append(f"{what}: {kept} is there, not {whole}")

    def _book(self, at: LinkedNode, name: str) -> Book:
        with at.node.client() as client:
            book = book_of(name, imported_spans(client.export_context(name).spans))
            if len(book.tokens) <= MOST_TOKENS:
                return book
            client.truncate(name, n_messages=1)
            return book_of(name, imported_spans(client.export_context(name).spans))

    def _owner(self, name: str) -> tuple[LinkedNode, Book]:
        """Who has it, once nobody is in doubt, and no answer of it goes on. Raises TimeoutError."""
        late, seen = time.monotonic() + LATE, "nobody has it"
        while time.monotonic() < late:
            listed = list[LinkedNode]()
            for at in self.nodes:
                with at.node.client() as client:
                    if any(info.name == name for info in client.contexts()):
                        listed.append(at)
            if len(listed) == 1:
                with contextlib.suppress(LlmaasError), listed[0].node.client() as client:
                    return listed[0], book_of(name, imported_spans(client.export_context(name).spans))
            seen = f"{[at.name for at in listed]} have it"
            time.sleep(0.05)
        raise TimeoutError(seen)

    def _mend(self) -> None:
        for at in self.nodes:
            at.link.bits_per_s = 0.0
            process = at.node.process
            if process is not None and process.poll() is not None:
                at.node.end(signal.SIGKILL)
                at.node.start()


def hit(kind: str, source: LinkedNode, target: LinkedNode) -> None:
    if kind.endswith("killed"):
        process = (source if kind.startswith("source") else target).node.process
        assert process is not None
        process.kill()
        process.wait(LATE)
    elif kind == "link cut":
        target.link.cut()
    elif kind == "link slow":
        target.link.bits_per_s = SLOW_BITS


@contextmanager
def others(nodes: tuple[LinkedNode, ...]) -> Iterator[Counter[str]]:
    """Others use both nodes meanwhile: how many answers each gave them."""
    stop, n_answers = threading.Event(), Counter[str]()

    def use(at: LinkedNode) -> None:
        while not stop.wait(0.05):
            with contextlib.suppress(LlmaasError, OSError), at.node.client() as client:
                client.context("stays")
                while not stop.wait(0.02):
                    if client.show("stays").info.n_tokens > MOST_TOKENS:
                        client.truncate("stays", n_tokens=0)
                    client.ask("stays", "hello", max_tokens=10)
                    n_answers[at.name] += 1

    threads = [threading.Thread(target=use, args=(at,)) for at in nodes]
    for thread in threads:
        thread.start()
    try:
        yield n_answers
    finally:
        stop.set()
        for thread in threads:
            thread.join(LATE)


@contextmanager
def two_linked(root: Path) -> Iterator[tuple[LinkedNode, LinkedNode]]:
    phone, desk = Node(root / "phone", free_port()), Node(root / "desk", free_port())
    with slow_link(phone.port) as to_phone, slow_link(desk.port) as to_desk:
        nodes = LinkedNode("phone", phone, to_phone), LinkedNode("desk", desk, to_desk)
        for here, there in (nodes, nodes[::-1]):
            pin(
                here.node.root / "data",
                there.name,
                own_identity(there.node.root / "data"),
                f"127.0.0.1:{there.link.port}",
            )
        for at in nodes:
            at.node.start()
        codes = list[int]()
        try:
            yield nodes
        finally:
            codes = [at.node.end(signal.SIGTERM) for at in nodes]
        assert codes == [0, 0], "each looks at its books and its store at the end"


def live_moves(root: Path, n_moves: int, seed: int) -> LiveMoves:
    """Move so many times. Raises AssertionError if a node finds something wrong with itself at the end."""
    with two_linked(root) as nodes:
        moves = LiveMoves(nodes, seed)
        with others(nodes) as n_answers:
            for _ in range(n_moves):
                moves.one()
        moves.tally["answers to others"] = sum(n_answers.values())
    return moves


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--moves", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmaas-moves-") as folder:
        moves = live_moves(Path(folder), args.moves, args.seed)
    summary: dict[str, Any] = {"seed": args.seed, **moves.tally, "verdict": moves.verdict}
    print(json.dumps(summary, indent=2))
    return 1 if moves.verdict else 0


if __name__ == "__main__":
    sys.exit(main())

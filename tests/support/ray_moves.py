"""Contexts that move through a cluster on Ray in the middle of an answer, for tests that disturb it; and what must be
so afterwards."""

from __future__ import annotations

import contextlib
import threading
import time

from llmaas.calls import Generation, Terms
from llmaas.errors import LlmaasError, Moving
from llmaas.records import Message
from llmaas.service.span_records import imported_spans
from tests.support.books import Book, Expected, book_of
from tests.support.daemon import CELLS
from tests.support.oracle import Oracle
from tests.support.ray_house import LATE, NAMES, RayHouse

WORDS = "the tide comes in and the tide goes out " * 4
TEXT = "tell me all of it"
ANSWER, RATE = 90, 30.0
SLOW_BITS, BEGUN_BYTES = 2e5, 3000
"""The link of the move, and what has gone over it when the kill comes."""


class AskedOfEntry(threading.Thread):
    """Somebody asks through the entry, and reads until the answer ends."""

    def __init__(self, house: RayHouse, context: str) -> None:
        super().__init__()
        self.tokens, self.done, self.error = list[int](), False, ""
        self.begun, self._house, self._context = threading.Event(), house, context

    def run(self) -> None:
        try:
            with self._house.client() as client:
                stream = client.generate(self._context, TEXT, max_tokens=ANSWER, terms=Terms(rate=RATE))
                for piece in stream:
                    self.tokens += piece.tokens
                    self.begun.set()
                self.done = stream.done.n_generated == len(self.tokens)
        except (LlmaasError, OSError) as error:
            self.error = repr(error)
        finally:
            self.begun.set()


class MovedByEntry(threading.Thread):
    """Somebody has the context moved meanwhile."""

    def __init__(self, house: RayHouse, context: str, target: str) -> None:
        super().__init__()
        self.error, self._args = "", (house, context, target)

    def run(self) -> None:
        house, context, target = self._args
        try:
            with house.client() as client:
                client.move(context, target, way="chunks")
        except (LlmaasError, OSError) as error:
            self.error = repr(error)


def source_and_target(house: RayHouse, name: str) -> tuple[str, str]:
    """The node that has the context, and another one."""
    (source,) = house.owners(name)
    return source, next(each for each in NAMES if each != source)


def under_way(house: RayHouse, name: str, target: str, n_bytes: int = BEGUN_BYTES) -> tuple[AskedOfEntry, MovedByEntry]:
    """An answer, and a move of its context that has sent so many bytes over a slow link."""
    link = house.links[target]
    asked, moved = AskedOfEntry(house, name), MovedByEntry(house, name, target)
    asked.start()
    assert asked.begun.wait(LATE) and not asked.error, asked.error
    link.bits_per_s, n_before = SLOW_BITS, link.n_passed
    moved.start()
    house.until(lambda: link.n_passed > n_before + n_bytes or not moved.is_alive(), "the move is under way")
    assert moved.is_alive(), f"it was over before anything was done to it: {moved.error}"
    return asked, moved


def talked(house: RayHouse, name: str) -> Book:
    with house.client() as client:
        client.create(name=name, system="Be brief.")
        for i in range(2):
            client.ask(name, f"{i}: {WORDS}", max_tokens=9)
        return book_of(name, imported_spans(client.export_context(name).spans))


def the_owner(house: RayHouse, name: str) -> str:
    """Once all nodes know it."""
    late = time.monotonic() + LATE
    while time.monotonic() < late:
        with contextlib.suppress(Moving, LlmaasError, OSError):
            if len(owners := house.owners(name)) == 1:
                with house.client() as client:
                    client.show(name)
                return owners[0]
        time.sleep(0.2)
    raise AssertionError(f"{house.owners(name)} own it, or nobody may use it")


def judge(house: RayHouse, owner: str, name: str, before: Book, expected: Expected, asked: AskedOfEntry) -> None:
    """All that was acknowledged is there, and what was told is what an engine of its own gives."""
    assert tuple(asked.tokens) == expected.drawn[: len(asked.tokens)]
    with house.nodes[owner].client() as client:
        book = book_of(name, imported_spans(client.export_context(name).spans))
    assert book.messages[: len(before.messages)] == before.messages
    kept = book.messages[len(before.messages) :]
    if asked.done:
        assert kept == [("user", TEXT), ("assistant", expected.text)]
    assert not kept or (kept[0] == ("user", TEXT) and expected.text.startswith(kept[-1][1]))


def answer_after(before: Book) -> Expected:
    """What an engine of its own answers to ``TEXT``."""
    expected = Oracle(CELLS - 1).generate(before, [Message("user", TEXT)], None, Generation(max_tokens=ANSWER))
    assert expected is not None
    return expected

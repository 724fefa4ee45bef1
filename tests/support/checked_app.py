"""An app that does random things with its contexts and checks every reply.

The ``Oracle`` says what must be answered, and the app's books what each context must hold.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmaas.api.client import Client
from llmaas.calls import Done, FinishReason, Generation, Sampling, Terms
from llmaas.errors import Cancelled, ContextTooLong
from llmaas.records import ContextId, Message
from tests.support.books import Book, Expected
from tests.support.oracle import Oracle

TEXT = "the service keeps far more contexts than fit in memory and brings them back when an app asks again"
WORDS = TEXT.split()

COMMON = (TEXT * 2)[:192]
"""Three chunks of text. Many contexts have them after different first chunks, and their KV must not be confused."""


@dataclass
class Pending:
    """An operation without a reply yet. ``allowed``: what its context may be after a restart; None: it is not there."""

    id: ContextId | None
    name: str
    allowed: list[Book | None]


@dataclass
class App:
    """One app and its contexts. ``pending`` is the operation under way, which a kill may have cut short."""

    name: str
    seed: int
    oracle: Callable[[], Oracle]
    books: dict[ContextId, Book] = field(default_factory=dict)
    adapters: Sequence[str] = ()
    """Names of adapters that daemon and oracle know."""
    max_contexts: int = 5
    long_answer: int = 60
    pending: Pending | None = None
    acknowledged: int = 0
    """Terminal replies so far."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._names = 0

    def run(self, client: Client, go_on: Callable[[], bool]) -> None:
        """Do random things until ``go_on`` is False. Raises NotServing when the daemon goes away."""
        self._oracle = self.oracle()
        calls = [self.say] * 6 + [self.go_on] * 2 + [self.append, self.raw, self.cancel, self.look]
        calls += [self.create, self.fork, self.truncate, self.delete]
        while go_on():
            call = self.rng.choice(calls) if len(self.books) > 1 else self.create
            call(client)

    def say_everywhere(self, client: Client) -> None:
        """Check one more answer in every context."""
        self._oracle = self.oracle()
        for id in list(self.books):
            self.generate(client, id, [Message("user", "still there?")], None, Generation(8))

    # -- operations

    @contextmanager
    def doing(self, id: ContextId | None, name: str, allowed: list[Book | None]) -> Iterator[None]:
        """For the time of one operation: it is ``pending``. If the block raises, it stays so."""
        self.pending = Pending(id, name, allowed)
        yield
        self.pending = None
        self.acknowledged += 1

    def some(self) -> tuple[ContextId, Book]:
        return self.rng.choice(list(self.books.items()))

    def some_text(self) -> str:
        return " ".join(self.rng.choices(WORDS, k=self.rng.choice((3, 10, 40))))

    def some_adapter(self) -> str | None:
        """An adapter to change to, or none (""); mostly None, for no change."""
        return self.rng.choice(["", *self.adapters]) if self.adapters and self.rng.random() < 0.15 else None

    def new_name(self) -> str:
        self._names += 1
        return f"{self.name}-{self._names}"

    def create(self, client: Client) -> None:
        if len(self.books) < self.max_contexts:
            name, system, adapter = self.new_name(), self.rng.choice([None, "Answer in verse."]), self.some_adapter()
            book = Book(name, adapter=adapter or "")
            after = self._oracle.append(book, [Message("system", system)] if system else [])
            with self.doing(None, name, [None, after]):
                info = client.create(name=name, system=system, adapter=book.adapter)
                self.books[info.id] = after
            assert (info.name, info.n_tokens, info.n_messages) == (name, len(after.tokens), len(after.marks))
            if not after.tokens and self.rng.random() < 0.5:
                own_chunk = f"{self.rng.randrange(1 << 64):063}"  # a chunk, with the start token
                self.generate(client, info.id, [], own_chunk + COMMON, Generation(5))

    def fork(self, client: Client) -> None:
        if len(self.books) < self.max_contexts:
            id, book = self.some()
            after = dataclasses.replace(book, name=self.new_name())
            with self.doing(None, after.name, [None, after]):
                info = client.fork(id, name=after.name)
                self.books[info.id] = after
            assert info.n_tokens == len(after.tokens)

    def delete(self, client: Client) -> None:
        if len(self.books) > 2:
            id, book = self.some()
            with self.doing(id, book.name, [book, None]):
                client.delete(id)
                del self.books[id]

    def truncate(self, client: Client) -> None:
        id, book = self.some()
        n_messages = self.rng.randint(0, len(book.marks))
        by_message = book.marks and self.rng.random() < 0.6
        if by_message:
            n = book.marks[n_messages - 1].end if n_messages else 0
        else:
            n = self.rng.randint(0, len(book.tokens))
        after = book.cut(n)
        if not book.cuts_clean(n):
            return
        with self.doing(id, book.name, [book, after]):
            info = client.truncate(id, n_messages=n_messages) if by_message else client.truncate(id, n_tokens=n)
            self.books[id] = after
        assert (info.n_tokens, info.n_messages) == (n, len(after.marks))

    def look(self, client: Client) -> None:
        id, book = self.some()
        self.compare(client, id, book)
        assert {info.id for info in client.contexts()} == self.books.keys()
        self.acknowledged += 2

    def compare(self, client: Client, id: ContextId, book: Book) -> None:
        detail = client.show(id)
        assert (detail.info.name, detail.info.n_tokens) == (book.name, len(book.tokens))
        assert [(m.role, m.content) for m in detail.messages] == book.messages
        assert sum(detail.info.tiers) == len(book.tokens)
        assert detail.info.adapter == book.adapter

    def append(self, client: Client) -> None:
        id, book = self.some()
        messages = [Message("user", self.some_text())]
        after = self._oracle.append(book, messages)
        with self.doing(id, book.name, [book, after]):
            try:
                done = client.append(id, messages)
            except ContextTooLong:
                assert len(after.tokens) > self._oracle.limit
                return
            self.books[id] = after
        assert (done.reason, done.n_tokens) == (FinishReason.APPENDED, len(after.tokens))

    def raw(self, client: Client) -> None:
        """A raw prompt, to the first context without messages: a context has either."""
        for id, book in self.books.items():
            if not book.marks:
                return self.generate(client, id, [], self.some_text(), Generation(20))

    def say(self, client: Client) -> None:
        dice = Sampling(temperature=0.8, seed=self.rng.randrange(1 << 32))
        sampling = self.rng.choice([Sampling(), Sampling(), dice])
        id, book = self.some()
        # Other tests are about a context that gets full while text is held back for a stop string.
        roomy = len(book.tokens) < self._oracle.limit - 400
        stop = self.rng.choice([(), (), ("e", "th"), ("zz",)]) if roomy else ()
        generation = Generation(self.rng.choice([1, 5, 20, self.long_answer]), sampling, stop)
        self.generate(client, id, [Message("user", self.some_text())], None, generation)

    def go_on(self, client: Client) -> None:
        id, book = self.some()
        if book.tokens:
            self.generate(client, id, [], None, Generation(self.rng.choice([1, 7, 30])))

    def cancel(self, client: Client) -> None:
        text = [Message("user", self.some_text())]
        self.generate(client, self.some()[0], text, None, Generation(200), cancel_after=self.rng.randrange(12))

    def generate(
        self,
        client: Client,
        id: ContextId,
        messages: list[Message],
        prompt: str | None,
        generation: Generation,
        cancel_after: int | None = None,
    ) -> None:
        """One call and all checks of its reply. ``cancel_after``: cancel it after so many pieces."""
        book, adapter = self.books[id], self.some_adapter()
        asked = book if adapter is None else dataclasses.replace(book, adapter=adapter)
        expected = self._oracle.generate(asked, messages, prompt, generation)
        after = expected.after() if expected is not None else None
        cuts = range(1, len(expected.drawn)) if expected and cancel_after is not None else ()
        partly = [expected.after(n) for n in cuts] if expected else []
        with self.doing(id, book.name, [book, after, *partly] if after else [book]):
            stream = client.generate(
                id,
                messages,
                prompt=prompt,
                max_tokens=generation.max_tokens,
                sampling=generation.sampling,
                stop=generation.stop,
                terms=Terms(adapter=adapter),
            )
            try:
                if cancel_after is not None:
                    for _, _ in zip(range(cancel_after), stream, strict=False):
                        pass
                    stream.cancel()
                done = stream.done
            except ContextTooLong:
                assert expected is None, "it would have fitted"
            except Cancelled as e:
                assert cancel_after is not None
                self.books[id] = self._cancelled(book, expected, e.n_generated, stream.text)
            else:
                assert expected is not None and after is not None, "it must be too long"
                self.books[id] = after
                self._check(done, expected, stream.text)

    def _cancelled(self, book: Book, expected: Expected | None, n: int, text: str) -> Book:
        """The context after a call that was cancelled with ``n`` tokens generated and ``text`` streamed."""
        kept = expected.drawn[:n] if expected else ()
        assert len(kept) == n and text == bytes(kept).decode()
        return expected.after(n) if expected is not None and kept else book

    def _check(self, done: Done, expected: Expected, text: str) -> None:
        assert text == expected.text, f"{self.name}: the answer is not the one of these tokens ({done.switch})"
        assert (done.reason, done.n_generated) == (expected.reason, len(expected.drawn))
        assert done.n_kept == len(expected.kept)
        assert done.n_tokens == len(expected.prompted.tokens) + done.n_kept

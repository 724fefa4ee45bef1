"""What a daemon on the fake engine must say, and an app that does random things and believes none of it unchecked.

The ``Oracle`` is a fake engine of its own, fed with the same tokens and never swapped: a chunk that the daemon mixes
up, loses or codes wrongly makes it say something else. A ``Book`` is what one context must hold after every reply.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from llmaas.api.client import Client
from llmaas.calls import Done, FinishReason, Generation, Sampling, Terms
from llmaas.engine.base import BatchItem
from llmaas.engine.fake import FakeEngine, fake_adapter
from llmaas.errors import Cancelled, ContextTooLong
from llmaas.kvchunks.store.store import Span
from llmaas.records import ContextId, Message

TEXT = "the service keeps far more contexts than fit in memory and brings them back when an app asks again"
WORDS = TEXT.split()

COMMON = (TEXT * 2)[:192]
"""Three chunks of text that stand in many contexts behind different first chunks: their KV may never be mixed up."""


@dataclass(frozen=True)
class Mark:
    """A message, and where its tokens end."""

    role: str
    text: str
    end: int
    open: bool = False


@dataclass(frozen=True)
class Book:
    """One context as its app knows it. ``spans`` are those that the store must have."""

    name: str
    tokens: tuple[int, ...] = ()
    marks: tuple[Mark, ...] = ()
    spans: tuple[Span, ...] = field(default=(), compare=False)
    adapter: str = ""
    """LoRA adapter that all of it is computed with."""

    @property
    def messages(self) -> list[tuple[str, str]]:
        return [(mark.role, mark.text) for mark in self.marks]

    @property
    def open(self) -> bool:
        return bool(self.marks) and self.marks[-1].open

    def add(self, span: Span) -> Book:
        start, tokens, marks, text = len(self.tokens), (*self.tokens, *span.tokens), self.marks, span.text or ""
        if span.role is not None:
            if span.open and self.open and marks[-1].end == start:  # an answer that goes on is one message
                text, marks = marks[-1].text + text, marks[:-1]
            marks = (*marks, Mark(span.role, text, len(tokens), span.open))
        return Book(self.name, tokens, marks, (*self.spans, span), self.adapter)

    def cut(self, n: int) -> Book:
        """The first ``n`` tokens; what is left of a span that is cut in two is no message any more."""
        book = Book(self.name, adapter=self.adapter)
        for span in self.spans:
            room = n - len(book.tokens)
            if len(span.tokens) <= room:
                book = book.add(span)
            elif room:
                book = book.add(Span(span.tokens[:room]))
        return book

    def cuts_clean(self, n: int) -> bool:
        """False in the middle of an answer that went on, and at an empty answer: these have tests of their own."""
        start = 0
        for span in self.spans:
            if start == n and not span.tokens:
                return False
            start += len(span.tokens)
        return self.cut(n).marks == tuple(mark for mark in self.marks if mark.end <= n)


def book_of(name: str, spans: Sequence[Span], adapter: str = "") -> Book:
    """A context as the store has it."""
    book = Book(name, adapter=adapter)
    for span in spans:
        book = book.add(span)
    return book


@dataclass(frozen=True)
class Expected:
    """What a generate must bring: prompt and drawn tokens, the text that streams, and why it ends. ``text`` ends before
    a stop string, and so does the context."""

    prompted: Book
    """With the turn, without the answer."""
    drawn: tuple[int, ...]
    text: str
    reason: FinishReason
    is_message: bool

    @property
    def kept(self) -> tuple[int, ...]:
        """The tokens that the context keeps: of the fake engine each is a byte of the text."""
        return self.drawn[: len(self.text.encode())]

    def after(self, n: int | None = None) -> Book:
        """The context when all of the answer that was told, or its first ``n`` tokens, were kept."""
        drawn = self.kept if n is None else self.drawn[:n]
        text = self.text if n is None else bytes(drawn).decode()
        if self.is_message:
            return self.prompted.add(Span(drawn, "assistant", text, True))
        return self.prompted.add(Span(drawn))


def adapter_files(folder: Path, names: Sequence[str], nbytes: int = 1000) -> dict[str, Path]:
    """Adapters for the fake engine, about so large."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(fake_adapter(name.encode() * (nbytes // len(name))))
    return {name: folder / name for name in names}


class Oracle:
    """Answers from an undisturbed engine. For the thread that made it only."""

    def __init__(
        self, limit: int, *, end_rate: float = 0.0, adapters: Mapping[str, Path] = MappingProxyType({})
    ) -> None:
        self.limit = limit
        self._engine = FakeEngine(limit + 1, 1, end_rate=end_rate)
        for name, path in adapters.items():
            self._engine.load_adapter(name, path)

    def append(self, book: Book, messages: Sequence[Message], prompt: str | None = None) -> Book:
        if prompt is not None:
            return book.add(self._span(book, prompt))
        if book.open and messages:
            book = book.add(self._span(book, "<|im_end|>\n"))
        for m in messages:
            text = f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n"
            book = book.add(self._span(book, text, m))
        return book

    def generate(
        self, book: Book, messages: Sequence[Message], prompt: str | None, generation: Generation
    ) -> Expected | None:
        """None if it must be refused as too long."""
        is_message = prompt is None and bool(messages or book.marks)
        goes_on = book.open and not messages
        book = self.append(book, messages, prompt)
        if is_message and not goes_on:
            book = book.add(self._span(book, "<|im_start|>assistant\n"))
        if len(book.tokens) > self.limit:
            return None
        return Expected(book, *self._answer(book.tokens, generation, book.adapter), is_message)

    def _span(self, book: Book, text: str, message: Message | None = None) -> Span:
        tokens = tuple(self._engine.tokenize(text, special=True, bos=not book.tokens))
        return Span(tokens, message.role, message.content) if message else Span(tokens)

    def _answer(
        self, tokens: tuple[int, ...], generation: Generation, adapter: str
    ) -> tuple[tuple[int, ...], str, FinishReason]:
        engine, drawn = self._engine, b""
        engine.drop(0, 0)
        sampling = generation.sampling
        engine.set_sampler(0, sampling, tokens[-sampling.penalty_last_n :] if sampling.penalises else ())
        todo = list(tokens)
        while todo[engine.max_batch :]:
            engine.step([BatchItem(0, engine.length(0), todo[: engine.max_batch])], adapter)
            del todo[: engine.max_batch]
        while True:
            (token,) = engine.step([BatchItem(0, engine.length(0), todo, 0)], adapter)
            assert token is not None
            if engine.is_end(token):
                return tuple(drawn), drawn.decode(), FinishReason.STOP
            drawn, todo = drawn + bytes([token]), [token]
            stops = [at for at in (drawn.find(s.encode()) for s in generation.stop) if at >= 0]
            if stops:
                return tuple(drawn), drawn[: min(stops)].decode(), FinishReason.STOP
            if len(drawn) == generation.max_tokens:
                return tuple(drawn), drawn.decode(), FinishReason.LENGTH
            if len(tokens) + len(drawn) >= self.limit:
                return tuple(drawn), drawn.decode(), FinishReason.CONTEXT_FULL


@dataclass
class Pending:
    """An operation whose reply has not come: what its context may be when the daemon is back. None: not there."""

    id: ContextId | None
    name: str
    allowed: list[Book | None]


@dataclass
class App:
    """One app and its contexts. Every reply is compared with the oracle's; ``pending`` is what a kill cut short."""

    name: str
    seed: int
    oracle: Callable[[], Oracle]
    books: dict[ContextId, Book] = field(default_factory=dict)
    adapters: Sequence[str] = ()
    """Names that the daemon knows, and the oracle."""
    max_contexts: int = 5
    long_answer: int = 60
    pending: Pending | None = None
    acknowledged: int = 0
    """Terminal replies so far."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._names = 0

    def run(self, client: Client, go_on: Callable[[], bool]) -> None:
        """Until ``go_on`` is False. Raises NotServing when the daemon goes away."""
        self._oracle = self.oracle()
        calls = [self.say] * 6 + [self.go_on] * 2 + [self.append, self.raw, self.cancel, self.look]
        calls += [self.create, self.fork, self.truncate, self.delete]
        while go_on():
            call = self.rng.choice(calls) if len(self.books) > 1 else self.create
            call(client)

    def say_everywhere(self, client: Client) -> None:
        """One more answer in every context."""
        self._oracle = self.oracle()
        for id in list(self.books):
            self.generate(client, id, [Message("user", "still there?")], None, Generation(8))

    # -- operations

    @contextmanager
    def doing(self, id: ContextId | None, name: str, allowed: list[Book | None]) -> Iterator[None]:
        self.pending = Pending(id, name, allowed)
        yield
        self.pending = None
        self.acknowledged += 1

    def some(self) -> tuple[ContextId, Book]:
        return self.rng.choice(list(self.books.items()))

    def some_text(self) -> str:
        return " ".join(self.rng.choices(WORDS, k=self.rng.choice((3, 10, 40))))

    def some_adapter(self) -> str | None:
        """To switch to, now and then."""
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
                own_chunk = f"{self.rng.randrange(1 << 64):063}"  # and the token of the start
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
        """Raw text goes only into contexts without messages: the two do not mix."""
        for id, book in self.books.items():
            if not book.marks:
                return self.generate(client, id, [], self.some_text(), Generation(20))

    def say(self, client: Client) -> None:
        dice = Sampling(temperature=0.8, seed=self.rng.randrange(1 << 32))
        sampling = self.rng.choice([Sampling(), Sampling(), dice])
        id, book = self.some()
        # A context that is full while text is held back for a stop string has a test of its own.
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
                return
            except Cancelled as e:
                assert cancel_after is not None
                kept = expected.drawn[: e.n_generated] if expected else ()
                assert len(kept) == e.n_generated and stream.text == bytes(kept).decode()
                self.books[id] = expected.after(len(kept)) if expected is not None and kept else book
            else:
                assert expected is not None and after is not None, "it must be too long"
                self.books[id] = after
                self._check(done, expected, stream.text)

    def _check(self, done: Done, expected: Expected, text: str) -> None:
        assert text == expected.text, f"{self.name}: the answer is not the one of these tokens ({done.switch})"
        assert (done.reason, done.n_generated) == (expected.reason, len(expected.drawn))
        assert done.n_kept == len(expected.kept)
        assert done.n_tokens == len(expected.prompted.tokens) + done.n_kept

"""Apps that use the soaked daemon and check every reply.

A ``Visitor`` uses contexts of its own over one connection after another, and knows from the oracle what every reply
must be. What it does depends on its seed; what happens then depends on the daemon's timing as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmaas.api.async_client import AsyncClient, AsyncStream
from llmaas.calls import Done, FinishReason, Generation, Piece, Sampling, Terms
from llmaas.errors import Busy, Cancelled, ContextTooLong, Expired, LlmaasError, NotServing
from llmaas.records import ContextId, Message
from tests.support.books import Book, Expected, Mark
from tests.support.checked_app import COMMON, WORDS
from tests.support.oracle import Oracle

LATE = 60.0
"""Seconds after which a reply counts as missing."""


@dataclass
class Tally:
    """What all clients did, and with what outcome: "done" or the code of an error."""

    operations: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    longest: dict[int, float] = field(default_factory=dict)
    """The longest that a call waited to be admitted, in seconds, by priority."""

    def note(self, operation: str, outcome: object) -> None:
        self.operations[operation] += 1
        self.outcomes[getattr(outcome, "code", "done")] += 1


@dataclass
class Asked:
    """A call that was submitted."""

    id: ContextId
    messages: list[Message]
    prompt: str | None
    generation: Generation
    terms: Terms
    stream: AsyncStream


class Visitor:
    """One app. Without an oracle nobody knows what the model answers; then replies are compared among themselves."""

    max_contexts = 5

    def __init__(
        self,
        name: str,
        seed: int,
        socket: Path,
        oracle: Oracle | None,
        limit: int,
        tally: Tally,
        adapters: Sequence[str] = (),
    ) -> None:
        self.name, self.socket, self.oracle, self.limit, self.tally = name, socket, oracle, limit, tally
        self.rng, self.adapters = random.Random(seed), adapters
        self.books: dict[ContextId, Book] = {}
        self._names = 0
        self._client: AsyncClient

    async def live(self, go_on: Callable[[], bool]) -> None:
        """Connect and disconnect until ``go_on`` is False; then check an answer in every context, and delete them."""
        while go_on():
            async with await AsyncClient.connect(self.socket, app=self.name, timeout=LATE) as self._client:
                for _ in range(self.rng.randint(3, 40)):
                    if not go_on():
                        break
                    await self.do_something()
                if self.books and self.rng.random() < 0.5:
                    await self.vanish()
        async with await AsyncClient.connect(self.socket, app=self.name, timeout=LATE) as self._client:
            for id in list(self.books):
                await self.answers([self.ask(id, Terms(), Generation(8))])
                await self.compare(id)
                await self.client(self._client.delete(id))
            assert not await self._client.contexts()
            self.books.clear()

    async def do_something(self) -> None:
        operations = [self.say] * 6 + [self.two_at_once] * 2 + [self.many_at_once, self.cancel, self.cancel, self.hurry]
        operations += [self.append, self.look, self.hint, self.create, self.fork, self.truncate, self.delete]
        operations += [self.overflow, self.logprobs]
        await (self.rng.choice(operations) if len(self.books) > 1 else self.create)()

    # -- calls

    async def say(self) -> None:
        await self.answers([self.ask(self.some())])

    async def two_at_once(self) -> None:
        """Two calls of one context: the second waits for the first; one of them may be cancelled meanwhile."""
        id = self.some()
        first, second = self.ask(id), self.ask(id)
        if (victim := self.rng.choice([first, second, None])) is not None:
            await asyncio.sleep(self.rng.choice([0, 0.003, 0.05]))
            await self.reply(victim.stream.cancel())
        await self.answers([first, second])

    async def many_at_once(self) -> None:
        await self.answers([self.ask(id) for id in list(self.books)])

    async def cancel(self) -> None:
        asked = self.ask(self.some())
        with contextlib.suppress(LlmaasError, StopAsyncIteration):
            for _ in range(self.rng.randrange(12)):
                await self.reply(anext(asked.stream))
        await self.reply(asked.stream.cancel())
        await self.answers([asked])

    async def hurry(self) -> None:
        """Change the priority of a call that waits or runs."""
        asked = self.ask(self.some())
        await asyncio.sleep(self.rng.choice([0, 0.003, 0.03]))
        await self.reply(asked.stream.prioritize(self.rng.randrange(10)))
        await self.answers([asked])

    async def logprobs(self) -> None:
        """An answer with log probabilities: there must be one for each token, in the tokens' order."""
        asked = self.ask(self.some(), generation=Generation(20, logprobs=self.rng.choice([0, 3])))
        pieces: list[Piece] = []

        async def listen() -> None:
            async for piece in asked.stream:
                pieces.append(piece)

        with contextlib.suppress(LlmaasError):
            await self.reply(listen())
        told = [each for piece in pieces for each in piece.logprobs or ()]
        assert [each.token for each in told] == [token for piece in pieces for token in piece.tokens]
        await self.answers([asked])

    async def overflow(self) -> None:
        """An answer that may drop the context's oldest messages.

        Other tests are about what the context holds then, so it is deleted.
        """
        id = max(self.books, key=lambda id: len(self.books[id].tokens))
        asked = self.ask(id, generation=Generation(400, stop=("zz",), on_full="shift"))
        expected = self.expected(asked)
        if expected is not None and len(expected.prompted.tokens) + asked.generation.max_tokens <= self.limit:
            return await self.answers([asked])
        try:
            done = await self.reply(asked.stream.done())
        except (Busy, Expired, ContextTooLong) as e:
            self.tally.note("overflow", e)
        else:
            self.tally.note("overflow: shifted" if done.n_dropped else "overflow", None)
            self.waited(done, asked.terms)
            detail = await self.client(self._client.show(id))
            assert detail.info.n_tokens == done.n_tokens <= self.limit
            assert not detail.messages or detail.messages[-1].content.endswith(asked.stream.text)
        await self.client(self._client.delete(id))
        del self.books[id]

    async def vanish(self) -> None:
        """Hang up during some calls. Each context must be as before its call, or have some of the answer."""
        asked = [self.ask(id) for id in self.rng.sample(list(self.books), min(len(self.books), 3))]
        await asyncio.sleep(self.rng.choice([0, 0.002, 0.01, 0.1]))
        await self._client.close()
        self.tally.note("vanish", None)
        async with await AsyncClient.connect(self.socket, app=self.name, timeout=LATE) as self._client:
            for one in asked:
                twin = await self.client(self._client.fork(one.id))  # the fork waits for the call's end
                book, expected = self.books[one.id], self.expected(one)
                n = twin.n_tokens - len(expected.prompted.tokens) if expected is not None else 0
                if expected is not None and twin.n_tokens != len(book.tokens):
                    assert 0 <= n <= len(expected.drawn), f"{self.name}: {twin.n_tokens} tokens are left"
                    self.books[one.id] = expected.after(n)
                elif self.oracle is None:
                    self.books[one.id] = await self.as_shown(one.id)
                assert twin.adapter in (book.adapter, self.adapter(one)), f"{self.name}: {twin.adapter!r}"
                self.books[one.id] = dataclasses.replace(self.books[one.id], adapter=twin.adapter)
                await self.compare(one.id)
                await self.client(self._client.delete(twin.id))

    async def append(self) -> None:
        id, messages, terms = self.some(), [Message("user", self.text())], self.terms()
        book = self.books[id]
        try:
            done = await self.client(self._client.append(id, messages, terms=terms))
        except (Busy, Expired) as e:
            return self.tally.note("append", e)
        except ContextTooLong as e:
            assert self.oracle is None or len(self.oracle.append(book, messages).tokens) > self.limit
            return self.tally.note("append", e)
        self.tally.note("append", None)
        self.waited(done, None)
        book = book if terms.adapter is None else dataclasses.replace(book, adapter=terms.adapter)
        self.books[id] = self.oracle.append(book, messages) if self.oracle else await self.as_shown(id)
        assert (done.reason, done.n_tokens) == (FinishReason.APPENDED, len(self.books[id].tokens))

    def ask(self, id: ContextId, terms: Terms | None = None, generation: Generation | None = None) -> Asked:
        book, rng = self.books[id], self.rng
        raw = bool(book.tokens) and not book.marks
        messages = [] if raw or (book.tokens and rng.random() < 0.2) else [Message("user", self.text())]
        prompt = self.text() if raw and rng.random() < 0.7 else None
        if generation is None:
            strict = Sampling(repeat_penalty=1.3, frequency_penalty=0.4)
            sampling = rng.choice([Sampling(), Sampling(temperature=0.8, seed=rng.randrange(1 << 32)), strict])
            # Other tests are about a context that gets full while text is held back for a stop string.
            stop = rng.choice([(), (), ("e", "th"), ("zz",)]) if len(book.tokens) < self.limit - 600 else ()
            generation = Generation(rng.choice([1, 5, 20, 20, 60, 150]), sampling, stop)
        terms = terms or self.terms()
        stream = self._client.generate(
            id,
            messages,
            prompt=prompt,
            max_tokens=generation.max_tokens,
            sampling=generation.sampling,
            stop=generation.stop,
            terms=terms,
            logprobs=generation.logprobs,
            on_full=generation.on_full,
        )
        return Asked(id, messages, prompt, generation, terms, stream)

    def terms(self) -> Terms:
        rng = self.rng
        deadline = rng.choice([None, None, None, 30.0, 0.2, 0.02])
        rate = rng.choice([None, None, None, 1000.0, 100.0])
        adapter = rng.choice(["", *self.adapters]) if rng.random() < 0.2 else None
        return Terms(rng.choice([0, 1, 5, 5, 5, 8, 9]), deadline, rate, adapter)

    def adapter(self, asked: Asked) -> str:
        """The adapter that the call computes with."""
        return self.books[asked.id].adapter if asked.terms.adapter is None else asked.terms.adapter

    async def answers(self, all_asked: Iterable[Asked]) -> None:
        """Check every reply, in the order of the calls, and keep what each context then holds."""
        for asked in all_asked:
            try:
                done = await self.reply(asked.stream.done())
            except NotServing:
                raise
            except LlmaasError as e:
                self.tally.note("generate", e)
                await self.failed(asked, e)
            else:
                self.tally.note("generate", None)
                self.waited(done, asked.terms)
                await self.done(asked, done)

    async def done(self, asked: Asked, done: Done) -> None:
        if self.oracle is None:
            self.books[asked.id] = await self.as_shown(asked.id)
            return
        expected, text = self.expected(asked), asked.stream.text
        assert expected is not None, "it should have been too long"
        self.books[asked.id] = expected.after()
        assert text == expected.text, f"{self.name}: not the answer of these tokens ({done.switch})"
        assert (done.reason, done.n_generated) == (expected.reason, len(expected.drawn))
        assert done.n_kept == len(expected.kept)
        assert done.n_tokens == len(expected.prompted.tokens) + done.n_kept

    async def failed(self, asked: Asked, error: LlmaasError) -> None:
        if isinstance(error, Cancelled | Expired):
            if error.n_generated and self.oracle is None:
                self.books[asked.id] = await self.as_shown(asked.id)
            elif error.n_generated:
                expected = self.expected(asked)
                assert expected is not None
                kept = expected.drawn[: error.n_generated]
                assert asked.stream.text == bytes(kept).decode()
                self.books[asked.id] = expected.after(len(kept))
        elif isinstance(error, ContextTooLong):
            assert self.oracle is None or self.expected(asked) is None, "it would have fitted"
        elif not isinstance(error, Busy):
            raise error

    def expected(self, asked: Asked) -> Expected | None:
        if self.oracle is None:
            return None
        book = dataclasses.replace(self.books[asked.id], adapter=self.adapter(asked))
        return self.oracle.generate(book, asked.messages, asked.prompt, asked.generation)

    # -- contexts

    async def create(self) -> None:
        if len(self.books) >= self.max_contexts:
            return
        system = self.rng.choice([None, "Answer in verse.", COMMON])
        adapter = self.rng.choice(["", "", *self.adapters])
        info = await self.client(self._client.create(name=self.new_name(), system=system, adapter=adapter))
        self.tally.note("create", None)
        messages = [Message("system", system)] if system else []
        book = Book(info.name, adapter=adapter)
        self.books[info.id] = self.oracle.append(book, messages) if self.oracle else await self.as_shown(info.id)
        assert info.n_tokens == len(self.books[info.id].tokens)
        if not system and self.oracle and self.rng.random() < 0.3:  # raw text, the same in many contexts
            own_chunk = f"{self.rng.randrange(1 << 64):063}"
            stream = self._client.generate(info.id, prompt=own_chunk + COMMON, max_tokens=5)
            await self.answers([Asked(info.id, [], own_chunk + COMMON, Generation(5), Terms(), stream)])

    async def fork(self) -> None:
        if len(self.books) < self.max_contexts:
            id = self.some()
            info = await self.client(self._client.fork(id, name=self.new_name()))
            self.tally.note("fork", None)
            self.books[info.id] = dataclasses.replace(self.books[id], name=info.name)

    async def truncate(self) -> None:
        id = self.some()
        book = self.books[id]
        n = self.rng.choice([0, self.rng.randint(0, len(book.tokens)), *(mark.end for mark in book.marks)])
        if self.oracle and not book.cuts_clean(n):
            return
        info = await self.client(self._client.truncate(id, n_tokens=n))
        self.tally.note("truncate", None)
        self.books[id] = book.cut(n) if self.oracle else await self.as_shown(id)
        assert info.n_tokens == n

    async def delete(self) -> None:
        """Delete a context, sometimes while a call of it runs."""
        if len(self.books) > 2:
            id = self.some()
            asked = self.ask(id) if self.rng.random() < 0.3 else None
            await self.client(self._client.delete(id))
            self.tally.note("delete", None)
            if asked is not None:
                with contextlib.suppress(LlmaasError):
                    await self.reply(asked.stream.done())
            del self.books[id]

    async def hint(self) -> None:
        await self.client(self._client.hint(self.some()))
        self.tally.note("hint", None)

    async def look(self) -> None:
        await self.compare(self.some())
        found = {info.id for info in await self.client(self._client.contexts())}
        self.tally.note("list", None)
        assert found == self.books.keys()

    async def compare(self, id: ContextId) -> None:
        detail, book = await self.client(self._client.show(id)), self.books[id]
        self.tally.note("show", None)
        assert detail.info.n_tokens == len(book.tokens), f"{self.name}: {detail.info}, not {len(book.tokens)} tokens"
        assert [(m.role, m.content) for m in detail.messages] == book.messages
        assert sum(detail.info.tiers) == len(book.tokens)
        assert detail.info.adapter == book.adapter

    # -- helpers

    async def as_shown(self, id: ContextId) -> Book:
        """What the daemon says of the context, as a book: later operations on other contexts must not change it."""
        detail = await self.client(self._client.show(id))
        n = detail.info.n_tokens
        marks = tuple(Mark(m.role, m.content, n) for m in detail.messages)
        return Book(detail.info.name, (0,) * n, marks, adapter=detail.info.adapter)

    @staticmethod
    async def reply(what: Any) -> Any:
        return await asyncio.wait_for(what, LATE)

    client = reply

    def waited(self, done: Done, terms: Terms | None) -> None:
        priority = terms.priority if terms else 5
        self.tally.longest[priority] = max(self.tally.longest.get(priority, 0.0), done.queue_ms / 1e3)

    def some(self) -> ContextId:
        return self.rng.choice(list(self.books))

    def text(self) -> str:
        return " ".join(self.rng.choices(WORDS, k=self.rng.choice((3, 10, 40))))

    def new_name(self) -> str:
        self._names += 1
        return f"{self.name}-{self._names}"


def soon(seconds: float) -> Callable[[], bool]:
    """A function that is True for ``seconds`` from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end

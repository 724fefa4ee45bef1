"""What a daemon on the fake engine must answer.

The ``Oracle`` is a fake engine of its own, fed with the same tokens and never swapped. A daemon that confuses chunks,
loses one or codes one wrongly answers something else than the oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from llmaas.calls import FinishReason, Generation
from llmaas.engine.base import BatchItem
from llmaas.engine.fake import FakeEngine, fake_adapter
from llmaas.kvchunks.store.store import Span
from llmaas.records import Message
from tests.support.books import Book, Expected


def adapter_files(folder: Path, names: Sequence[str], nbytes: int = 1000) -> dict[str, Path]:
    """Write an adapter for the fake engine, of about ``nbytes``, under each name; their paths."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(fake_adapter(name.encode() * (nbytes // len(name))))
    return {name: folder / name for name in names}


class Oracle:
    """Computes what a daemon must answer, with contexts of at most ``limit`` tokens.

    It is for the thread that made it only.
    """

    def __init__(
        self, limit: int, *, end_rate: float = 0.0, adapters: Mapping[str, Path] = MappingProxyType({})
    ) -> None:
        self.limit = limit
        self._engine = FakeEngine(limit + 1, 1, end_rate=end_rate)
        for name, path in adapters.items():
            self._engine.load_adapter(name, path)

    def append(self, book: Book, messages: Sequence[Message], prompt: str | None = None) -> Book:
        """The context with the messages, or with the raw text of ``prompt``."""
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
        """What the call must bring; None if it must be refused as too long."""
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

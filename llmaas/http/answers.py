"""From an Ask to the daemon's streams: in which context it is answered, and how it is cancelled.

Law: an answer that nobody reads any more is cancelled. A conversation goes on in the context that holds most of it,
which the daemon finds; a context made for raw text is deleted with its answer. Several answers are to the same
messages.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from llmaas.api.async_client import AsyncClient, AsyncStream
from llmaas.calls import Done, Piece, Sampling
from llmaas.errors import BadRequest, LlmaasError
from llmaas.http.ask import Ask
from llmaas.http.errors import HttpError
from llmaas.records import Message

_ID = re.compile("[0-9a-f]{16}")


@asynccontextmanager
async def answers(client: AsyncClient, asks: Sequence[Ask]) -> AsyncIterator[tuple[list[AnswerStream], list[str]]]:
    """An answer to each of ``asks``, being generated, and the contexts that they are in. Raises LlmaasError,
    HttpError."""
    made: list[str] = []
    streams: list[AnswerStream] = []
    try:
        contexts = await _contexts(client, asks, made)
        streams += [AnswerStream(client, ask, place) for ask, place in zip(asks, contexts, strict=True)]
        yield streams, [place.context for place in contexts]
    finally:
        for stream in streams:
            with suppress(LlmaasError):
                await stream.aclose()
        for context in made:
            with suppress(LlmaasError):
                await client.delete(context)


class _AnswerPlace(NamedTuple):
    """Where an answer belongs."""

    context: str
    messages: tuple[Message, ...]
    """What the context lacks of the conversation."""
    n_tokens: int | None = None
    """Tokens in the context, of one that the daemon has found and keeps for the next call."""


class AnswerStream:
    """An answer as it comes. If the daemon cannot follow the schemas of tools that need not be called, the answer is
    drawn without them."""

    def __init__(self, client: AsyncClient, ask: Ask, place: _AnswerPlace) -> None:
        self._client, self._ask, self._place = client, ask, place
        self._kept = ask.kept
        """While the answer may still be drawn without schemas."""
        self._stream = self._begin(self._kept or ask.sampling)

    def _begin(self, sampling: Sampling, if_n_tokens: int | None = None) -> AsyncStream:
        ask, named = self._ask, self._ask.call(sampling)
        context, messages, _ = self._place
        return self._client.generate(
            context, messages, prompt=ask.prompt, special=ask.special, if_n_tokens=if_n_tokens, **named
        )

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> Piece:
        try:
            piece = await anext(self._stream)
        except BadRequest as refused:
            if self._kept is None or "schema" not in refused.message:
                raise
            # The context is not kept for this call any more: if another one has gone on with it, that is a conflict.
            self._kept, self._stream = None, self._begin(self._ask.sampling, if_n_tokens=self._place.n_tokens)
            piece = await anext(self._stream)
        if piece.of_answer:
            self._kept = None
        return piece

    async def pass_to(self, take: Callable[[Piece], Awaitable[None] | None]) -> None:
        """See ``AsyncStream.pass_to``."""
        async for piece in self:
            if (rest := take(piece)) is not None:
                await rest
            if self._kept is None:  # it cannot begin anew any more
                await self._stream.pass_to(take)

    @property
    def text(self) -> str:
        return self._stream.text

    async def done(self) -> Done:
        return await self._stream.done()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _contexts(client: AsyncClient, asks: Sequence[Ask], made: list[str]) -> list[_AnswerPlace]:
    """For each ask its context, and the messages that it lacks. ``made`` gets those that are for this request."""
    ask, adapter = asks[0], asks[0].terms.adapter or ""
    if ask.context is not None:
        if len(asks) > 1:
            raise HttpError(400, "a context that lasts has one answer to each request: n must be 1", param="n")
        if not _ID.fullmatch(ask.context):
            await client.context(ask.context, adapter=adapter)  # made if there is none
        return [_AnswerPlace(ask.context, ask.messages)]
    if ask.prompt is not None:  # raw text has no history to find
        for _ in asks:
            made.append((await client.create(adapter=adapter)).id)
        return [_AnswerPlace(context, ()) for context in made]
    if len(asks) > 1:  # computed once, then shared
        first = await client.resolve(ask.messages, adapter=adapter)
        if rest := ask.messages[first.n_messages :]:
            await client.append(first.context.id, rest, terms=ask.terms)
    found = [await client.resolve(ask.messages, adapter=adapter) for _ in asks]
    return [_AnswerPlace(each.context.id, ask.messages[each.n_messages :], each.context.n_tokens) for each in found]


def n_prompt(done: Done) -> int:
    """Tokens that were in the context before the answer."""
    return max(0, done.n_tokens - done.n_kept)


def n_cached(done: Done) -> int:
    """Tokens of the prompt whose KV was there already, wherever it was."""
    switch = done.switch
    return max(0, min(n_prompt(done) - done.n_prompt, switch.cells + switch.pool + switch.disk))

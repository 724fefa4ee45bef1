"""From an Ask to the daemon's streams: in which context it is answered, and how it is cancelled.

Law: an answer that nobody reads any more is cancelled. A conversation goes on in the context that holds most of it,
which the daemon finds; a context made for raw text is deleted with its answer. Several answers are to the same
messages.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from llmaas.api.async_client import AsyncClient, AsyncStream
from llmaas.calls import Done
from llmaas.errors import ContextExists, LlmaasError
from llmaas.http.ask import Ask
from llmaas.http.errors import HttpError
from llmaas.records import Message

_ID = re.compile("[0-9a-f]{16}")


@asynccontextmanager
async def answers(client: AsyncClient, asks: Sequence[Ask]) -> AsyncIterator[tuple[list[AsyncStream], list[str]]]:
    """An answer to each of ``asks``, being generated, and the contexts that they are in. Raises LlmaasError,
    HttpError."""
    made: list[str] = []
    streams: list[AsyncStream] = []
    try:
        contexts = await _contexts(client, asks, made)
        for ask, (context, messages) in zip(asks, contexts, strict=True):
            streams.append(client.generate(context, messages, prompt=ask.prompt, special=ask.special, **ask.call()))
        yield streams, [context for context, _ in contexts]
    finally:
        for stream in streams:
            with suppress(LlmaasError):
                await stream.aclose()
        for context in made:
            with suppress(LlmaasError):
                await client.delete(context)


async def _contexts(client: AsyncClient, asks: Sequence[Ask], made: list[str]) -> list[tuple[str, tuple[Message, ...]]]:
    """For each ask its context, and the messages that it lacks. ``made`` gets those that are for this request."""
    ask, adapter = asks[0], asks[0].terms.adapter or ""
    if ask.context is not None:
        if len(asks) > 1:
            raise HttpError(400, "a context that lasts has one answer to each request: n must be 1", param="n")
        if not _ID.fullmatch(ask.context):
            with suppress(ContextExists):
                await client.create(name=ask.context, adapter=adapter)
        return [(ask.context, ask.messages)]
    if ask.prompt is not None:  # raw text has no history to find
        for _ in asks:
            made.append((await client.create(adapter=adapter)).id)
        return [(context, ()) for context in made]
    if len(asks) > 1:  # computed once, then shared
        first = await client.resolve(ask.messages, adapter=adapter)
        if rest := ask.messages[first.n_messages :]:
            await client.append(first.context.id, rest, terms=ask.terms)
    found = [await client.resolve(ask.messages, adapter=adapter) for _ in asks]
    return [(each.context.id, ask.messages[each.n_messages :]) for each in found]


def n_prompt(done: Done) -> int:
    """Tokens that were in the context before the answer."""
    return max(0, done.n_tokens - done.n_kept)


def n_cached(done: Done) -> int:
    """Tokens of the prompt whose KV was there already, wherever it was."""
    switch = done.switch
    return max(0, min(n_prompt(done) - done.n_prompt, switch.cells + switch.pool + switch.disk))

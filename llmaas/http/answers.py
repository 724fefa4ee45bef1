"""From an Ask to the daemon's streams: in which context it is answered, and how it is cancelled.

Law: an answer that nobody reads any more is cancelled, and a context made for one request alone is deleted with it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from llmaas.api.async_client import AsyncClient, AsyncStream
from llmaas.calls import Done
from llmaas.errors import ContextExists, LlmaasError
from llmaas.http.ask import Ask
from llmaas.http.errors import HttpError
from llmaas.records import Message

_ID = re.compile("[0-9a-f]{16}")


@asynccontextmanager
async def answers(client: AsyncClient, ask: Ask, n: int = 1) -> AsyncIterator[list[AsyncStream]]:
    """``n`` answers to ``ask``, being generated. Raises LlmaasError, HttpError."""
    made: list[str] = []
    streams: list[AsyncStream] = []
    try:
        for context, messages in await _contexts(client, ask, n, made):
            streams.append(client.generate(context, messages, prompt=ask.prompt, special=ask.special, **ask.call()))
        yield streams
    finally:
        for stream in streams:
            with suppress(LlmaasError):
                await stream.aclose()
        for context in made:
            with suppress(LlmaasError):
                await client.delete(context)


async def _contexts(client: AsyncClient, ask: Ask, n: int, made: list[str]) -> list[tuple[str, tuple[Message, ...]]]:
    """For each answer its context, and the messages that it lacks. ``made`` gets those that are for this request."""
    if ask.context is not None:
        if n > 1:
            raise HttpError(400, "a context that lasts has one answer to each request: n must be 1", param="n")
        if not _ID.fullmatch(ask.context):
            with suppress(ContextExists):
                await client.create(name=ask.context, adapter=ask.terms.adapter or "")
        return [(ask.context, ask.messages)]
    for _ in range(n):
        made.append((await client.create(adapter=ask.terms.adapter or "")).id)
    return [(context, ask.messages) for context in made]


def n_prompt(done: Done) -> int:
    """Tokens that were in the context before the answer."""
    return max(0, done.n_tokens - done.n_kept)


def n_cached(done: Done) -> int:
    """Tokens of the prompt whose KV was there already, wherever it was."""
    switch = done.switch
    return max(0, min(n_prompt(done) - done.n_prompt, switch.cells + switch.pool + switch.disk))

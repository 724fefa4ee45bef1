"""Tells a cluster what the daemon holds, in marks of chunk keys, and by which marks an app's text would be found.

Law: reads only. What is held is told to the operator alone; what a text would be found by follows from that text, the
model and the roots that were given, and from nothing that the daemon holds, so that nobody learns of others by asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial

from llmaas.api.mark_messages import MOST_MARKS, FoundMarks, ListedMarks, MarksOf
from llmaas.calls import Turn
from llmaas.engine.base import Engine
from llmaas.kvchunks.keys import chunk_keys
from llmaas.policies.context_marks import chain_marks, kept_indices, packed
from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey
from llmaas.service.interpreter import Interpreter
from llmaas.service.live_context import LiveContext
from llmaas.service.parts import ServiceParts
from llmaas.service.refusals import refuse_if_oversized, refuse_without_text
from llmaas.service.turn_spans import first_spans

_BATCH = 64
"""Contexts that are looked at in one go, some 0.5 ms; then others have their turn."""


class MarkTeller:
    """For one event loop. ``ctx_limit``: tokens of the longest context."""

    def __init__(self, parts: ServiceParts, interpreter: Interpreter, ctx_limit: int) -> None:
        self._parts, self._is_stored, self._ctx_limit = parts, interpreter.stored, ctx_limit

    async def listed(self, uid: int, *, most: int = MOST_MARKS) -> ListedMarks:
        """See ``api.transfer_operations.list_marks``; ``most``: marks. What came from another node is left out: no
        other conversation finds its chunks. Of each context there are all marks or none."""
        mine = f"{uid}/"
        contexts = [live for live in self._parts.directory if live.row.app.startswith(mine) and not live.row.origin]
        contexts.sort(key=lambda live: (live.used, live.last_used), reverse=True)
        found, n_left_out = dict[ChunkKey, None](), 0
        for n, live in enumerate(contexts, start=1):
            if n % _BATCH == 0:
                await asyncio.sleep(0)
            keys = [] if live.deleted else list(self._stored_keys(live))
            if len(found) + len(keys) > most:
                n_left_out += 1
                continue
            found.update(dict.fromkeys(keys))
        return ListedMarks(self._parts.engine.info.fingerprint, packed(chain_marks(found)), n_left_out)

    def _stored_keys(self, live: LiveContext) -> Iterator[ChunkKey]:
        for i in kept_indices(live.n_kv // CHUNK_TOKENS):
            if self._is_stored(live.keys[i]):
                yield live.keys[i]

    async def of(self, app: AppId, request: MarksOf) -> FoundMarks:
        """See ``api.transfer_operations.marks_of``. Raises BadRequest, ContextTooLong, WritesNoText."""
        engine, turn = self._parts.engine, Turn(messages=request.messages)
        refuse_without_text(engine.info)
        refuse_if_oversized(turn, self._ctx_limit, engine.token_bytes)
        find = partial(_found, engine, request, self._ctx_limit)
        return await self._parts.text_threads.run_apart(app, turn, find)


def _found(engine: Engine, request: MarksOf, limit: int) -> FoundMarks:
    spans = first_spans(engine, request.messages, answer=request.answer, limit=limit)
    tokens = [token for span in spans for token in span.tokens]
    whole = tokens[: len(tokens) // CHUNK_TOKENS * CHUNK_TOKENS]
    return FoundMarks(len(tokens), tuple(_chain(root, whole) for root in request.roots))


def _chain(root: bytes, tokens: Sequence[int]) -> bytes:
    return packed(chain_marks(chunk_keys(root, tokens)))

"""Embeddings of texts, computed on the engine's thread between the steps of calls.

Law: a call waits for one slice of a text at most, whoever's text that is; and while calls run, embeddings get no more
than a part of the engine's time. Apps' texts are computed in turn. A model whose texts must be whole has no calls.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence

from llmaas.engine.base import Aborted, EmbeddingFacts
from llmaas.errors import BadRequest, ContextTooLong, ShuttingDown
from llmaas.kv_arrays import F32
from llmaas.records import AppId, Embeddings
from llmaas.service.fair_turns import FairTurns
from llmaas.service.parts import ServiceParts
from llmaas.service.places import CallPlaces

MOST_BYTES = 3 << 20
"""Bytes of the vectors of one request: they must fit into a frame."""
IDLE_S = 300.0
"""Seconds without a request after which the engine's memory for embeddings is freed."""
_SLICE_S = 0.1
"""Seconds that a slice should take at most; as ``step_ms`` of the planner."""
_FIRST_SLICE, _SHORTEST_SLICE = 16, 4
"""Tokens."""
_CALLS_SHARE = 3.0
"""While calls run, they get so many times the time that a slice took before the next one begins."""
_LOOK_S = 0.02
"""How soon it is seen that no call runs any more."""


class TextEmbedder:
    """Embeds the texts of apps. ``queue_limit``: requests of one app, with its calls, that may wait or run. Of one
    event loop."""

    def __init__(self, parts: ServiceParts, queue_limit: int) -> None:
        self._parts, self._thread, self._clock = parts, parts.engine_thread, parts.clock
        self._places = CallPlaces(queue_limit, parts.app_places, others=parts.embedding)
        self._turns = FairTurns()
        self._slice = float(_FIRST_SLICE)
        """Tokens that the engine computes in ``_SLICE_S``, as far as is known."""
        self._idle: asyncio.TimerHandle | None = None
        self._holds_memory = self._closing = False

    @property
    def limit(self) -> int:
        """Tokens of the longest text; 0 if no embeddings are computed."""
        facts = self._parts.engine.embedding
        return facts.limit if facts else 0

    def close(self) -> None:
        """Requests that run end with ShuttingDown, soon; more are not taken."""
        self._closing = True
        if self._idle is not None:
            self._idle.cancel()

    def free(self) -> None:
        """Give the engine's memory for embeddings back, unless it is in use."""
        if self._holds_memory and not self._parts.embedding and not self._closing:
            self._holds_memory = False
            self._thread.submit(self._parts.engine.end_embedding)

    async def embed(self, app: AppId, texts: Sequence[str], *, truncate: bool = False) -> Embeddings:
        """A vector for each text. ``truncate``: of a text that is too long, for its beginning.

        Raises BadRequest if there are none to be had, or too many at once, ContextTooLong, Busy, MachineError,
        EngineFailed and ShuttingDown.
        """
        self._refuse_if_closing()
        facts = self._parts.engine.embedding
        if facts is None:
            hint = "Set embedding_tokens to the tokens of the longest text."
            raise BadRequest("this daemon computes no embeddings", hint=hint)
        most = MOST_BYTES // (4 * facts.width)
        if len(texts) > most:
            raise BadRequest(f"field 'texts': {most} texts of this model's embeddings fit into a reply; send fewer")
        calls = self._parts.calls.values()
        self._places.refuse_one_more(app, sum(call.live.row.app == app and not call.hint for call in calls))
        held = self._parts.embedding
        held[app] = held.get(app, 0) + 1
        self._parts.weights.used()
        try:
            return await self._embed(app, facts, texts, truncate)
        finally:
            held[app] -= 1
            if not held[app]:
                del held[app]
            self._parts.weights.used()
            self._wait_for_more()

    async def _embed(self, app: AppId, facts: EmbeddingFacts, texts: Sequence[str], truncate: bool) -> Embeddings:
        tokens = [
            await self._parts.text_threads.run_long(app, self._tokens, facts, i, text, truncate)
            for i, text in enumerate(texts)
        ]
        packed = bytearray()
        for each in tokens:
            async with self._turns.turn(app):
                packed += (await self._vector(facts, each)).astype("<f4").tobytes()
        self._parts.metrics.counter("embedded_texts").add(len(tokens))
        self._parts.metrics.counter("embedded_tokens").add(sum(map(len, tokens)))
        return Embeddings(facts.width, tuple(map(len, tokens)), bytes(packed))

    def _tokens(self, facts: EmbeddingFacts, i: int, text: str, truncate: bool) -> array[int]:
        """The tokens of text number ``i``. Raises ContextTooLong."""
        engine, end = self._parts.engine, () if facts.end is None else (facts.end,)
        limit = facts.limit - len(end)
        if truncate:  # no more than so many bytes can be in the tokens that stay
            found = engine.tokenize(text[: limit * engine.token_bytes + 1], special=False, bos=True)[:limit]
        else:
            try:
                found = engine.tokenize(text, special=False, bos=True, limit=limit)
            except ContextTooLong:
                hint = "Cut it into shorter ones, or embed its beginning ('truncate')."
                raise ContextTooLong(f"text {i} has more than {limit} tokens, which is the limit", hint=hint) from None
        if not found:
            raise BadRequest(f"field 'texts[{i}]': the text has no tokens")
        return array("i", (*found, *(end if found[-1:] != [*end] else ())))

    async def _vector(self, facts: EmbeddingFacts, tokens: Sequence[int]) -> F32:
        """The embedding of one text, slice by slice."""
        pos, vector = 0, None
        while vector is None or pos < len(tokens):
            self._refuse_if_closing()
            n = max(1, min(int(self._slice), facts.slice_tokens, len(tokens) - pos))
            n = len(tokens) if facts.whole else n
            self._holds_memory = True
            try:
                vector, seconds = await asyncio.wrap_future(
                    self._thread.submit(self._timed, pos, tokens[pos : pos + n])
                )
            except Aborted:
                raise ShuttingDown("the service is stopping") from None
            pos += n
            if seconds > 0:
                self._slice = max(_SHORTEST_SLICE, min(facts.slice_tokens, 2 * self._slice, n * _SLICE_S / seconds))
            await self._let_calls_run(seconds)
        return vector

    def _timed(self, pos: int, tokens: Sequence[int]) -> tuple[F32, float]:
        begin = self._clock.now()
        return self._parts.engine.embed(pos, tokens), self._clock.now() - begin

    async def _let_calls_run(self, seconds: float) -> None:
        """Return when calls have had their share of the time after a slice, and the machine its rest."""
        begin = self._clock.now()
        rest = begin + seconds * (1 / max(self._parts.host.duty, 0.01) - 1)
        turn = begin + seconds * _CALLS_SHARE
        while True:
            late = max(rest, turn) if self._parts.calls else rest
            left = late - self._clock.now()
            if left <= 0 or self._closing:
                return
            await asyncio.sleep(min(left, _LOOK_S))

    def _wait_for_more(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if not self._closing and not self._parts.embedding:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.free)

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise ShuttingDown("the service is stopping")

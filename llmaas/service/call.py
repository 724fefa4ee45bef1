"""One call of a context: what it adds, what it streams, and its one terminal reply.

Law: a call's future is resolved exactly once. Text leaves through ``emit`` on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmaas.calls import Done, FinishReason, Generation, Logprobs, Piece, SwitchReport, Terms, Turn
from llmaas.engine.adapter_cache import AdapterFile
from llmaas.engine.base import Engine
from llmaas.errors import LlmaasError
from llmaas.kvchunks.store.store import Span
from llmaas.planner.actions import Finish, Outcome, Switched
from llmaas.planner.events import Drawn
from llmaas.records import Message, RequestId
from llmaas.service.chat import TextPart, turn_parts
from llmaas.service.contexts import LiveContext, total_tokens
from llmaas.service.logprobs import logprobs
from llmaas.service.stream import TextStream

if TYPE_CHECKING:
    from llmaas.service.shift import Shift

REASONS = {
    Outcome.STOP: FinishReason.STOP,
    Outcome.LENGTH: FinishReason.LENGTH,
    Outcome.CONTEXT_FULL: FinishReason.CONTEXT_FULL,
    Outcome.APPENDED: FinishReason.APPENDED,
}


@dataclass(slots=True, eq=False)
class Call:
    """A request from submission to its terminal reply. Times are of the service's clock, in seconds."""

    id: RequestId
    live: LiveContext
    turn: Turn
    generation: Generation | None
    emit: Callable[[Piece], None]
    terms: Terms
    submitted: float
    reply: asyncio.Future[Done]
    finished: asyncio.Future[Finish]
    stream: TextStream = field(default_factory=TextStream)
    hint: bool = False
    """Nobody waits for it: it only brings the context back."""
    cancelled: bool = False
    planned: bool = False
    """The planner knows it."""
    task: asyncio.Task[None] | None = None
    """What serves it."""
    timer: asyncio.TimerHandle | None = None
    """Its deadline, which comes even while it waits for its context."""
    has_sampler: bool = False
    adapter: AdapterFile | None = None
    """What it computes with; None: the bare model."""
    holds_adapter: bool = False
    """The adapter stays loaded for it. Of the engine's thread."""
    fault: LlmaasError | None = None
    """Why its adapter cannot be had."""
    before: tuple[str, bytes] | None = None
    """Adapter and root that its context had, if it changed them."""
    base: int = 0
    """Tokens of the context before the call, less those that ``shift`` dropped."""
    shift: Shift | None = None
    spans: list[Span] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)
    _said: deque[str] = field(default_factory=deque)
    """Text of tokens that had to be looked at for stop strings before they are streamed."""
    _told: deque[Logprobs] = field(default_factory=deque)
    """Log probabilities of tokens that are not streamed yet."""
    admitted: float = 0.0
    switched: float = 0.0
    sources: Switched | None = None
    n_paused: int = 0
    first_token: float = 0.0
    last_token: float = 0.0

    @property
    def n_prompt(self) -> int:
        return total_tokens(self.spans)

    @property
    def max_new(self) -> int:
        return self.generation.max_tokens if self.generation else 0

    @property
    def shifts(self) -> bool:
        return self.generation is not None and self.generation.on_full == "shift"

    @property
    def answers(self) -> bool:
        """True if what is generated is an assistant's message, not raw text."""
        return self.turn.prompt is None and bool(self.turn.messages or self.live.marks)

    def draw(self, token: int, item: int, engine: Engine, now: float) -> Drawn:
        """Item ``item`` of a step drew a token: what it means for the answer. On the engine's thread: no more than
        must be."""
        if not self.drawn:
            self.first_token = now
        self.last_token = now
        if engine.is_end(token):
            return Drawn.END
        self.live.tokens.append(token)
        self.drawn.append(token)
        if self.generation and self.generation.logprobs is not None:  # the next step will overwrite the logits
            self._told.append(logprobs(engine.logits(item), token, self.generation.logprobs, engine.piece))
        if not self.stop:
            return Drawn.TOKEN
        self._said.append(self.stream.feed(engine.piece(token)))
        return Drawn.LAST if self.stream.stopped else Drawn.TOKEN

    def say(self, drawn: Sequence[tuple[int, Drawn]], engine: Engine) -> Piece | None:
        """The piece to stream for tokens that ``draw`` took, in the same order. On the event loop's thread."""
        tokens = tuple(token for token, what in drawn if what is not Drawn.END)
        if not tokens:
            return None  # what is held back comes when the turn is committed
        texts = (self._said.popleft() if self.stop else self.stream.feed(engine.piece(token)) for token in tokens)
        told = tuple(self._told.popleft() for _ in tokens) if self._told else None
        return Piece("".join(texts), tokens, told)

    def rest(self) -> Piece | None:
        """What is still held back when the answer has ended: a possible stop string, or part of a character."""
        asked = self.generation is not None and self.generation.logprobs is not None
        return Piece(text, (), () if asked else None) if (text := self.stream.end()) else None

    @property
    def looks(self) -> bool:
        """Whether each token must be looked at before the next step: for stop strings, or its logits."""
        return self.generation is not None and bool(self.generation.stop or self.generation.logprobs is not None)

    @property
    def stop(self) -> tuple[str, ...]:
        return self.generation.stop if self.generation else ()

    def answer_span(self) -> list[Span]:
        """What was generated, as it will be kept."""
        if self.generation is None:
            return []
        if self.answers:
            return [Span(tuple(self.drawn), "assistant", self.stream.text, True)]
        return [Span(tuple(self.drawn))] if self.drawn else []

    def done(self, outcome: Outcome, now: float) -> Done:
        n = len(self.drawn)
        spent = self.last_token - self.first_token
        sources = self.sources or Switched(self.id, 0, 0, 0, 0)
        switch_ms = (self.switched - self.admitted) * 1e3
        return Done(
            context=self.live.id,
            reason=REASONS[outcome],
            n_tokens=len(self.live.tokens),
            n_prompt=self.n_prompt,
            n_generated=n,
            switch=SwitchReport(sources.cells, sources.pool, sources.disk, sources.recomputed, switch_ms),
            queue_ms=(self.admitted - self.submitted) * 1e3,
            ttft_ms=((self.first_token or now) - self.submitted) * 1e3,
            decode_tps=(n - 1) / spent if n > 1 and spent > 0 else 0.0,
            n_paused=self.n_paused,
            n_dropped=self.shift.dropped if self.shift else 0,
        )


def turn_spans(engine: Engine, live: LiveContext, turn: Turn, *, answer: bool) -> list[Span]:
    """The spans that a turn adds to the context, tokenized. Raises BadRequest if the template refuses."""
    if turn.prompt is not None:
        tokens = engine.tokenize(turn.prompt, special=True, bos=not live.tokens)
        return [Span(tuple(tokens))] if tokens else []
    if not turn.messages and not live.marks:
        return []
    opens_answer = answer and bool(turn.messages or not live.open)
    return _tokenized(engine, live, _parts(engine, live, turn.messages, opens_answer))


def _parts(engine: Engine, live: LiveContext, messages: Sequence[Message], answer: bool) -> list[TextPart]:
    return turn_parts(
        lambda msgs, ans: engine.render(msgs, answer=ans),
        live.messages,
        messages,
        past_open=live.open,
        answer=answer,
    )


def _tokenized(engine: Engine, live: LiveContext, parts: Sequence[TextPart]) -> list[Span]:
    spans = []
    first = not live.tokens
    for part in parts:
        tokens = tuple(engine.tokenize(part.text, special=True, bos=first))
        first = False
        message = part.message
        spans.append(Span(tokens, message.role, message.content) if message else Span(tokens))
    return spans

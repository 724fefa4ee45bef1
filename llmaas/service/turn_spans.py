"""The spans that a turn adds to a context: its text, by the model's chat template, tokenized.

Law: nothing is changed here; the engine's text methods may be called on any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.calls import Turn
from llmaas.engine.base import Engine
from llmaas.kvchunks.store.store import Span
from llmaas.records import Message
from llmaas.service.chat import TextPart, turn_parts
from llmaas.service.live_context import LiveContext


def turn_spans(engine: Engine, live: LiveContext, turn: Turn, *, answer: bool) -> list[Span]:
    """The spans that ``turn`` adds to the context; with ``answer`` the last one opens the model's answer.

    Raises BadRequest if the chat template cannot add the turn.
    """
    if turn.prompt is not None:
        tokens = engine.tokenize(turn.prompt, special=True, bos=not live.tokens)
        return [Span(tuple(tokens), text=turn.prompt)] if tokens else []
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

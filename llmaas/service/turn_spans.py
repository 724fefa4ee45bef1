"""The spans that a turn adds to a context: its text, by the model's chat template, tokenized.

Law: nothing is changed here; the engine's text methods may be called on any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.calls import Turn
from llmaas.engine.base import Engine
from llmaas.kvchunks.store.store import Span
from llmaas.records import Message
from llmaas.service.chat import first_text, next_text
from llmaas.service.control_names import control_names
from llmaas.service.conversation import Render
from llmaas.service.live_context import LiveContext
from llmaas.service.turn_tokens import spans_of


def turn_spans(engine: Engine, live: LiveContext, turn: Turn, *, answer: bool, limit: int) -> list[Span]:
    """The spans that ``turn`` adds to the context; with ``answer`` the last one opens the model's answer.

    Raises BadRequest if the chat template cannot add the turn, or if its text cannot be read; ContextTooLong if a part
    of it alone has more than ``limit`` tokens.
    """
    after = live.tokens[-1] if live.tokens else None
    if turn.prompt is not None:
        tokens = engine.tokenize(turn.prompt, special=turn.special, bos=after is None, after=after, limit=limit)
        return [Span(tuple(tokens), text=turn.prompt, open=not turn.special)] if tokens else []
    if not turn.messages and not live.marks:
        return []
    if after is None:
        return first_spans(engine, turn.messages, held=live.messages, answer=answer, limit=limit)
    render, names = renderer(engine), control_names(engine.control_names)
    text = next_text(render, live.messages, turn.messages, past_open=live.open, answer=answer, names=names)
    return spans_of(engine, text, names, after=after, limit=limit)


def first_spans(
    engine: Engine, messages: Sequence[Message], *, held: Sequence[Message] = (), answer: bool = False, limit: int
) -> list[Span]:
    """The spans of the messages in a context without tokens; ``held`` are messages that it has already."""
    names = control_names(engine.control_names)
    text = first_text(renderer(engine), held, messages, answer=answer, names=names)
    return spans_of(engine, text, names, after=None, limit=limit)


def renderer(engine: Engine) -> Render:
    return lambda messages, answer: engine.render(messages, answer=answer)

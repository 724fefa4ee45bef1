"""A conversation's tokens made anew, for a model with another tokenizer.

Law: made from what the store keeps as text, or refused; nothing is changed here. What tokens of the old model say is
known to that model only, so they are never guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from llmaas.calls import Turn
from llmaas.engine.base import Engine
from llmaas.errors import ModelMismatch
from llmaas.kvchunks.store.store import ContextRow, Span
from llmaas.records import Message
from llmaas.service.live_context import LiveContext
from llmaas.service.turn_spans import turn_spans


class _Text(NamedTuple):
    """A message, or raw text if ``role`` is None. ``open``: see ``Span``."""

    role: str | None
    text: str
    open: bool


def retokenized(engine: Engine, row: ContextRow, spans: Sequence[Span], limit: int) -> list[Span]:
    """The conversation's spans for the engine's model, by its chat template. An open answer stays open.

    Takes as long as a turn of all the messages. Safe on any thread. Raises ModelMismatch if a part of the conversation
    is not stored as text, and what ``turn_spans`` raises: ContextTooLong if one part has more than ``limit`` tokens.
    """
    context = LiveContext(row, root=b"", usable=True)
    made = list[Span]()
    for turn, answer in _turns(_texts(row, spans)):
        new = turn_spans(engine, context, turn, answer=answer is not None, limit=limit)
        context.add_spans(new)
        if answer is not None:
            after = context.tokens[-1] if context.tokens else None
            tokens = engine.tokenize(answer.text, special=False, bos=after is None, after=after, limit=limit)
            new.append(Span(tuple(tokens), answer.role, answer.text, True))
            context.add_spans(new[-1:])
        made += new
    return made


def _turns(texts: Sequence[_Text]) -> Iterator[tuple[Turn, _Text | None]]:
    """The turns that make the conversation, and the answer that the last one is left with if it is open."""
    for raw, group in groupby(texts, key=lambda text: text.role is None):
        run = list(group)
        if raw:
            yield from ((Turn(prompt=text.text, special=not text.open), None) for text in run)
            continue
        answer = run.pop() if run[-1] is texts[-1] and run[-1].open else None
        yield Turn(tuple(Message(text.role or "", text.text) for text in run)), answer


def _texts(row: ContextRow, spans: Sequence[Span]) -> list[_Text]:
    """What was said, without the old template's tokens. Raises ModelMismatch."""
    found = list[_Text]()
    before: Span | None = None
    for i, span in enumerate(spans):
        if span.role is None and span.text is None:
            if span.tokens and not _is_glue(before, spans[i + 1] if i + 1 < len(spans) else None):
                raise ModelMismatch(
                    f"{len(span.tokens)} tokens of context {row.name!r} are not stored as text: only the model that "
                    f"made them, {row.model!r}, knows what they say",
                    hint="Serve that model, cut the context to what comes before ('llmaas ctx truncate'), or create a "
                    "new one.",
                )
        elif span.role and span.open and before is not None and before.role and before.open:  # an answer that went on
            found[-1] = _Text(span.role, found[-1].text + (span.text or ""), True)
        else:
            found.append(_Text(span.role, span.text or "", span.open))
        before = span
    return found


def _is_glue(before: Span | None, after: Span | None) -> bool:
    """Whether tokens without text between these spans are the chat template's: they open an answer, or close one
    before the next message. What a truncation left of a message stands elsewhere, and raw text of version 0.1 too.
    """
    opens = after is not None and after.role is not None and after.open
    closes = (
        before is not None and before.role is not None and before.open and after is not None and after.role is not None
    )
    return opens or closes

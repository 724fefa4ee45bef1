"""Chat text: what a turn adds to a context, by the model's own template.

Law: pure; the template is a function that is passed in. The number of renderings does not grow with the conversation.

A template renders a whole conversation, but a context only grows at its end. So all of it is rendered, with a mark in
place of the last content that the context has: what comes behind the mark closes that message, adds the new ones and
opens the answer. This holds as well for templates whose text of a conversation is not the beginning of the text of a
longer one: those that write an end token unless an answer follows, or that drop the thoughts of earlier answers
(``settled_past`` has a context follow such a template).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmaas.engine.tools import TOOLS
from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.records import Message
from llmaas.service.content_marks import RenderedText
from llmaas.service.control_names import NO_NAMES, ControlNames
from llmaas.service.conversation import Closings, MarkedConversation, Render, n_same, standin_turn

_RAW = "Send a raw prompt instead."
LEADING = ("system", TOOLS)
"""Roles of messages that a template may write into the user's message that follows them."""


@frozen
class TextPart:
    """Text to add to a context: a message's, or glue around messages (``message`` None)."""

    text: str
    message: Message | None = None


@frozen
class TurnText:
    """The text that a turn adds. ``own`` says where in it the template itself wrote names of control tokens, ``joins``
    whether others might form where a content meets them; ``stops`` says where each part ends."""

    text: str = ""
    own: tuple[tuple[int, int], ...] = ()
    joins: bool = False
    stops: tuple[tuple[int, Message | None], ...] = ()

    @property
    def parts(self) -> list[TextPart]:
        starts = [0, *(stop for stop, _ in self.stops)]
        return [TextPart(self.text[a:b], message) for a, (b, message) in zip(starts, self.stops, strict=False)]


def turn_parts(
    render: Render,
    past: Sequence[Message],
    new: Sequence[Message],
    *,
    past_open: bool,
    answer: bool,
    names: ControlNames = NO_NAMES,
) -> list[TextPart]:
    """The parts that a turn adds to a context of ``past`` messages; see ``next_text``, and ``first_text`` for a context
    whose messages are all held back."""
    if not past or is_held_back(render, past, names):
        return first_text(render, past, new, answer=answer, names=names).parts
    return next_text(render, past, new, past_open=past_open, answer=answer, names=names).parts


def is_held_back(render: Render, messages: Sequence[Message], names: ControlNames = NO_NAMES) -> bool:
    """Whether these messages have no text of their own yet. So it is with the system's where a template wants a user's
    message first, or writes the system's into it; and with tools."""
    if not messages or n_leading(messages) < len(messages):
        return False
    conversation = MarkedConversation(render, messages, names)
    if messages[-1].role == TOOLS:
        return True
    try:
        shown = conversation.with_ends(conversation.marked(False), False, range(len(messages)))
    except BadRequest:
        return True
    return bool(shown.lost(messages))


def n_leading(messages: Sequence[Message]) -> int:
    """How many messages, of the system and tools, stand before all others."""
    return next((i for i, message in enumerate(messages) if message.role not in LEADING), len(messages))


def with_lead(conversation: MarkedConversation, shown: RenderedText, n_held: int) -> tuple[int, RenderedText]:
    """How many of the first messages have no text of their own, and ``shown`` with the end of the last that has,
    where ``n_held`` are thought to have none.

    Where there are tools, the template may write them behind the system's message. They must be part of its text, or
    all those messages are held back: what follows does not write them again.
    """
    n_lead = n_leading(conversation.messages)
    if n_held == n_lead or conversation.messages[0].role != TOOLS:
        return n_held, shown
    end, closed = shown.ends.get(n_lead - 1), conversation.closed(n_lead) if n_lead == 2 else None
    if end is None or closed is None or not shown.text.startswith(closed, end):
        return n_lead, shown
    return 1, replace(shown, ends={**shown.ends, n_lead - 1: end + len(closed)})


def first_text(
    render: Render,
    held: Sequence[Message],
    new: Sequence[Message],
    *,
    answer: bool,
    names: ControlNames = NO_NAMES,
) -> TurnText:
    """What a context without tokens begins with: all that is rendered. ``held`` are messages that it has already.

    System messages that have no text of their own get an empty part. Raises BadRequest if the template refuses.
    """
    names.refuse_roles(new)
    messages = [*held, *new]
    n_lead = n_leading(messages)
    n_held = n_lead if is_held_back(render, messages[:n_lead], names) else 0
    if n_held == len(messages) and not answer:
        return TurnText(stops=tuple((0, message) for message in new))
    conversation = MarkedConversation(render, messages, names)
    shown, body = _shown(conversation, len(held), answer, cut=None)
    _refuse_if_lost(shown, messages, len(held), but_system=not answer)
    n_held, shown = with_lead(conversation, shown, n_held)
    return divided(shown, body, new, len(held), Closings(render, names), n_held=max(0, n_held - len(held)))


def next_text(
    render: Render,
    past: Sequence[Message],
    new: Sequence[Message],
    *,
    past_open: bool,
    answer: bool,
    names: ControlNames = NO_NAMES,
) -> TurnText:
    """What a turn adds to a context that has ``past`` messages, or raw text only.

    ``past_open``: the last past message is an answer whose closing text is not in the context yet. ``answer``: the last
    part opens the model's answer. Raises BadRequest if the template refuses.
    """
    if past_open and not new:
        return TurnText()
    names.refuse_roles(new)
    closings = Closings(render, names)
    for before, is_open in ((past, past_open), (standin_turn(), past_open and bool(past))):
        if before:
            conversation = MarkedConversation(render, [*before, *new], names)
            shown, body = _shown(conversation, len(before), answer, cut=len(before) - 1)
            start = _n_closed(conversation, len(before), shown, is_open)
            if start is not None:
                return divided(
                    shown.since(start), body - start, new, len(before), closings, closes="assistant" if is_open else ""
                )
    raise BadRequest("the model's chat template cannot add these messages", hint=_RAW)


def _shown(conversation: MarkedConversation, first: int, answer: bool, cut: int | None) -> tuple[RenderedText, int]:
    """The conversation with the ends of its messages from ``first`` on, and where the text ends that does not depend on
    whether an answer is opened. Without ``answer`` it ends there."""
    marked = conversation.marked(answer, cut=cut)
    try:
        other = conversation.marked(not answer, cut=cut)
    except BadRequest:
        other = marked
    numbers = range(first, len(conversation.messages))
    shown = conversation.with_ends(marked, answer, numbers, cut=cut)
    body = n_same(shown, conversation.read(other))
    return (shown if answer else shown.until(body)), body


def _n_closed(conversation: MarkedConversation, n_past: int, shown: RenderedText, past_open: bool) -> int | None:
    """Where the text begins that the context does not have; None if that cannot be told, or if a message is lost."""
    if len(shown.cuts) != 1:
        return None
    closed = "" if past_open else conversation.closed(n_past)
    if closed is None or not shown.text.startswith(closed, shown.cuts[0]):
        return None
    start = shown.cuts[0] + len(closed)
    return None if shown.since(start).lost(conversation.messages, n_past) else start


def _refuse_if_lost(shown: RenderedText, messages: Sequence[Message], first: int, *, but_system: bool) -> None:
    """Raise BadRequest if the template leaves a message out: its text would be lost without a word."""
    for message in shown.lost(messages, first):
        if not (but_system and message.role == "system"):
            raise BadRequest(f"the model's chat template leaves out messages of the role {message.role!r}", hint=_RAW)


def divided(
    shown: RenderedText,
    body: int,
    new: Sequence[Message],
    first: int,
    closings: Closings,
    *,
    closes: str = "",
    n_held: int = 0,
) -> TurnText:
    """The text in parts: what closes a message of the role ``closes``, each new message with its closing text, and what
    opens the answer, from ``body`` on. The first new message has the number ``first``."""
    stops: list[tuple[int, Message | None]] = []
    at = 0
    if closes and shown.text.startswith(closing := closings.of(closes)):
        at = min(len(closing), body)
        stops.append((at, None))
    for i, message in enumerate(new):
        end = shown.ends.get(first + i, at)
        if i == len(new) - 1 and i >= n_held:
            end = body
        elif i < n_held:
            end = at
        elif shown.text.startswith(closing := closings.of(message.role), end):
            end += len(closing)
        at = max(at, min(end, body))
        stops.append((at, message))
    stops.append((len(shown.text), None))
    starts = [0, *(stop for stop, _ in stops)]
    kept = tuple(each for start, each in zip(starts, stops, strict=False) if each[1] is not None or each[0] > start)
    return TurnText(shown.text, shown.own, shown.joins, kept)

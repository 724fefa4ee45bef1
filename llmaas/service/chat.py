"""Chat text: what a turn adds to a context, by the model's own template.

Law: pure; the template is a function that is passed in.

A template renders a whole conversation, but a context only ever grows at its end. So the text of a turn is what the
rendering with the turn has beyond the rendering without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmaas.errors import BadRequest
from llmaas.records import Message

Render = Callable[[Sequence[Message], bool], str]
"""``render(messages, answer)``: the text of a conversation; with ``answer`` ready for the model's turn."""

_MARK = "\u2063mark\u2063"
"""A message whose place in a rendering can be found."""
_STANDIN = (Message("user", _MARK), Message("assistant", _MARK))


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text to add to a context: a message's, or glue around messages (``message`` None)."""

    text: str
    message: Message | None = None


def turn_parts(
    render: Render, past: Sequence[Message], new: Sequence[Message], *, past_open: bool, answer: bool
) -> list[TextPart]:
    """The parts that a turn adds, in order; empty glue is left out. Raises BadRequest if the template refuses.

    ``past_open``: the last past message is an answer whose closing text is not in the context yet. ``answer``: the last
    part opens the model's answer.
    """
    parts: list[TextPart] = []
    if past_open and new:
        parts.append(TextPart(_closing(render, past)))
    known = list(past)
    for message in new:
        parts.append(TextPart(_growth(render, known, message), message))
        known.append(message)
    if answer and not (past_open and not new):
        without, with_answer = render(known, False), render(known, True)
        if not with_answer.startswith(without):
            raise BadRequest("the model's chat template cannot open an answer here", hint="Send a raw prompt.")
        parts.append(TextPart(with_answer[len(without) :]))
    return [part for part in parts if part.text or part.message]


def _closing(render: Render, past: Sequence[Message]) -> str:
    """The text that closes the last message, which is open."""
    text = render([*past[:-1], Message(past[-1].role, _MARK)], False)
    return text[text.rindex(_MARK) + len(_MARK) :] if _MARK in text else ""


def _growth(render: Render, past: Sequence[Message], message: Message) -> str:
    """The text of one message that follows ``past``.

    Some templates rewrite earlier turns as a conversation grows. For those the message is rendered after a stand-in
    turn instead.
    """
    for before in (list(past), list(_STANDIN) if past else []):
        base = render(before, False) if before else ""
        text = render([*before, message], False)
        if text.startswith(base):
            return text[len(base) :]
    raise BadRequest("the model's chat template cannot add this message", hint="Send a raw prompt instead.")

"""What a template makes of the past when the next turn comes, where that is not what the context holds.

Law: pure; the template is a function that is passed in.

Templates of models that think drop the thoughts of earlier answers; others open an answer in one way, and write an
earlier answer in another. Then the context is cut back to the last message that is as it was, and goes on as the
template has it now. Only the last answer changes as a rule, and the answers before it in a loop of tool calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.engine.tools import TOOLS
from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.records import Message
from llmaas.service.chat import TurnText, divided, is_held_back, n_leading, with_lead
from llmaas.service.content_marks import RenderedText
from llmaas.service.control_names import NO_NAMES, ControlNames
from llmaas.service.conversation import Closings, MarkedConversation, Render, n_same


@frozen
class SettledPast:
    """The context keeps its first ``n_kept`` messages, and the others become ``text``. ``opening`` and ``closing`` are
    what it should hold before and behind the answers in it."""

    n_kept: int
    text: TurnText
    opening: str
    closing: str


def settled_past(
    render: Render,
    past: Sequence[Message],
    new: Sequence[Message],
    *,
    past_open: bool,
    answer: bool,
    names: ControlNames = NO_NAMES,
) -> SettledPast | None:
    """How the ``past``, which ends with an answer, is to be written when ``new`` messages follow. ``past_open``: the
    context does not hold yet what closes the answer.

    None if it stays as it is but for white space, or if it cannot be told: a template that refuses says so when the
    turn is rendered.
    """
    last = len(past) - 1
    if last < 1 or not new:
        return None
    conversation = MarkedConversation(render, [*past, *new], names)
    try:
        whole = conversation.marked(answer)
        if past_open and whole.startswith(conversation.marked(True, stop=last) + conversation.content(last)):
            return None  # the usual case, in two renderings
        stop = last if past_open else last + 1
        asked, plain = (conversation.read(conversation.marked(answer, stop=stop)) for answer in (True, False))
        shown = conversation.with_ends(whole, answer, range(len(past)))
        closed = conversation.closed(len(past))
    except BadRequest:
        return None
    end, body = shown.ends.get(last), n_same(asked, plain)
    if end is None or closed is None or not shown.text.startswith(closed, end):
        return None
    held = asked.text + past[-1].content if past_open else plain.text[:body]
    n_equal = n_same(shown, asked)
    if _squeezed(shown.text[n_equal : end if past_open else end + len(closed)]) == _squeezed(held[n_equal:]):
        return None
    closings = Closings(render, names)
    n_kept, start = (last, body) if past_open and n_equal >= body else _unchanged(past, shown, n_equal, closings)
    text = shown.until(end + len(closed)).since(start)
    n_held = 0
    if not n_kept:
        n_held, text = with_lead(conversation, text, _n_held_back(render, past, names))
    parts = divided(text, len(text.text), past[n_kept:], n_kept, closings, n_held=n_held)
    return SettledPast(n_kept, parts, asked.text[body:] if past_open else "", closings.of("assistant"))


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _unchanged(past: Sequence[Message], shown: RenderedText, n_equal: int, closings: Closings) -> tuple[int, int]:
    """How many messages stay where ``n_equal`` characters do, and where in the text the last of them ends.

    The last to stay is none of the assistant's: behind an answer the context may or may not hold what closes it.
    """
    n_lead = n_leading(past) if past[0].role == TOOLS else 0  # where those end is not told by their closing text
    for number in range(len(past) - 2, n_lead - 1, -1):
        end = shown.ends.get(number)
        if end is None or past[number].role == "assistant":
            continue
        closing = closings.of(past[number].role)
        end += len(closing) if shown.text.startswith(closing, end) else 0
        if end <= n_equal:
            return number + 1, end
    return 0, 0


def _n_held_back(render: Render, past: Sequence[Message], names: ControlNames) -> int:
    n_lead = n_leading(past)
    return n_lead if is_held_back(render, past[:n_lead], names) else 0

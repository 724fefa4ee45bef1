"""A conversation and its renderings by a chat template, with marks in the contents.

Law: pure; the template is a function that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from llmaas.errors import BadRequest
from llmaas.records import Message
from llmaas.service.content_marks import ContentMarks, RenderedText
from llmaas.service.control_names import ControlNames

Render = Callable[[Sequence[Message], bool], str]
"""``render(messages, answer)``: the text of a conversation; with ``answer`` ready for the model's turn."""

_STANDIN = "."
"""What is said in a conversation whose content does not matter."""


class MarkedConversation:
    """Messages and a template. A message's number is its index."""

    def __init__(self, render: Render, messages: Sequence[Message], names: ControlNames) -> None:
        self.messages = messages
        self._render, self._marks = render, ContentMarks(messages, names)
        self._guarded = [self._marks.guarded(message) for message in messages]

    def marked(self, answer: bool, *, stop: int | None = None, cut: int | None = None) -> str:
        """The rendered text of the messages before ``stop``, with marks; the content of message ``cut`` is only a mark.
        Raises BadRequest."""
        return self._render(self._texts(stop, cut), answer)

    def content(self, number: int) -> str:
        """The content of a message as ``marked`` has it."""
        return self._guarded[number].content

    def read(self, marked: str) -> RenderedText:
        """A rendered text; if a content in it is a mark, what follows it: the rest may be long, and is not wanted."""
        return self._marks.read(marked[max(0, marked.find(self._marks.cut)) :])

    def with_ends(self, marked: str, answer: bool, numbers: Collection[int], *, cut: int | None = None) -> RenderedText:
        """``marked``, which is ``self.marked(answer, cut=cut)``, and where the messages' contents end. A template that
        is disturbed by the marks of these ends is tried without those of blank contents; it may leave all unknown."""
        for tried in (numbers, [number for number in numbers if self.messages[number].content.strip()]):
            texts = self._texts(None, cut)
            for number in tried:
                texts[number] = self._marks.ended(texts[number], number)
            ended = self._render(texts, answer)
            if self._marks.without_ends(ended) == marked:
                found = self.read(ended)
                ends = {number: self._past_space(found.text, end, number) for number, end in found.ends.items()}
                return replace(found, ends=ends, ends_known=True)
        return self.read(marked)

    def _past_space(self, text: str, end: int, number: int) -> int:
        """The place behind white space that the content ends with, if the template has left it there."""
        content = self.messages[number].content
        space = content[len(content.rstrip()) :]
        return end + len(space) if text.startswith(space, end) else end

    def closed(self, stop: int) -> str | None:
        """What a context holds behind the last content before ``stop`` when no answer has been opened: all that comes
        there whether an answer is opened or not. None if this cannot be told."""
        try:
            plain = self.read(self.marked(False, stop=stop, cut=stop - 1))
            asked = self.read(self.marked(True, stop=stop, cut=stop - 1))
        except BadRequest:
            return None
        if len(plain.cuts) != 1:
            return None
        return plain.text[plain.cuts[0] : n_same(plain, asked)]

    def _texts(self, stop: int | None, cut: int | None) -> list[Message]:
        texts = self._guarded[:stop]
        if cut is not None:
            texts[cut] = Message(texts[cut].role, self._marks.cut)
        return texts


def n_same(a: RenderedText, b: RenderedText) -> int:
    """How many characters two texts have in common at their start; a control token's name counts whole or not."""
    low, high = 0, min(len(a.text), len(b.text))
    while low < high:
        middle = (low + high + 1) // 2
        if a.text[low:middle] == b.text[low:middle]:
            low = middle
        else:
            high = middle - 1
    for start, stop in (*a.own, *b.own):
        if start < low < stop:
            return start
    return low


class Closings:
    """What a template writes behind a message's content, by role, as a short conversation shows it."""

    def __init__(self, render: Render, names: ControlNames) -> None:
        self._render, self._names = render, names
        self._known: dict[str, str] = {}

    def of(self, role: str) -> str:
        """ "" if it is not known."""
        if role not in self._known:
            asked = [Message("user", _STANDIN)] if role not in ("user", "system") else []
            short = MarkedConversation(self._render, [*asked, Message(role, _STANDIN)], self._names)
            self._known[role] = short.closed(len(asked) + 1) or ""
        return self._known[role]


def standin_turn() -> list[Message]:
    """A turn that is over, in place of a past that cannot be rendered."""
    return [Message("user", _STANDIN), Message("assistant", _STANDIN)]

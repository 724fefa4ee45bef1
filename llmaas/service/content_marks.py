"""Marks in the contents of messages, by which a rendered conversation tells what is content and what is template.

Law: pure. A mark is a Unicode noncharacter (U+FDD0 to U+FDEF) that no message has, so that no content can forge one.
Marks are no white space: a template may strip a content, and the white space around it is outside of its marks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llmaas.engine.tools import TOOLS, read_tools, tools_text
from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.records import Message
from llmaas.service.control_names import NONCHARACTERS, ControlNames

_SPACE = re.compile(r"\s*")
_NONCHARACTER = re.compile("[\ufdd0-\ufdef]")
_WORDS = frozenset(["type", "function", "name", "description", "parameters", "properties", "required", "items", "enum"])
_WORDS |= {"object", "string", "number", "integer", "boolean", "array", "null", "strict", "default", "format"}
"""Words that templates look for in tools. None is a control token's name, so they need no marks."""


@frozen
class RenderedText:
    """A rendered conversation without its marks, and what they said. Places are indexes into ``text``."""

    text: str
    own: tuple[tuple[int, int], ...]
    """Where the template itself wrote names of control tokens: start and end of each."""
    ends: dict[int, int]
    """Where the contents of messages end, by number of the message; the first place if there are several."""
    cuts: tuple[int, ...] = ()
    """Where the content stands that was replaced by a mark."""
    joins: bool = False
    """Whether a control token's name might form where a content and other text meet."""
    ends_known: bool = False
    """Whether a message that has no end is left out of the text."""

    def lost(self, messages: Sequence[Message], first: int = 0) -> list[Message]:
        """The messages from number ``first`` on of which nothing is in the text, as far as that is known."""
        rest = enumerate(messages[first:], first) if self.ends_known else ()
        return [
            message
            for number, message in rest
            if number not in self.ends and message.content.strip() and message.role != TOOLS
        ]

    def since(self, start: int) -> RenderedText:
        """What comes from ``start`` on."""
        return RenderedText(
            self.text[start:],
            tuple((a - start, b - start) for a, b in self.own if a >= start),
            {number: end - start for number, end in self.ends.items() if end >= start},
            joins=self.joins,
            ends_known=self.ends_known,
        )

    def until(self, stop: int) -> RenderedText:
        """What comes before ``stop``."""
        return RenderedText(
            self.text[:stop],
            tuple((a, b) for a, b in self.own if b <= stop),
            {number: end for number, end in self.ends.items() if end <= stop},
            tuple(cut for cut in self.cuts if cut <= stop),
            self.joins,
            self.ends_known,
        )


class ContentMarks:
    """The marks for some messages. Raises BadRequest if their contents hold so many noncharacters that none is left."""

    def __init__(self, messages: Sequence[Message], names: ControlNames) -> None:
        used = {found for message in messages for found in _NONCHARACTER.findall(_plain(message))}
        free = [mark for mark in NONCHARACTERS if mark not in used]
        if len(free) < 7:
            raise BadRequest("the messages hold too many different noncharacters (U+FDD0 to U+FDEF)")
        self._names = names
        self._marks = frozenset(free[:7])
        self._open, self._close, self._joint, self.cut, self._end, self._zero, self._one = free[:7]
        self._end_mark = re.compile(f"{self._end}[{self._zero}{self._one}]*{self._end}")

    def guarded(self, message: Message) -> Message:
        """The message with marks around each control token's name, white space included, and where a name might form
        across the content's edge. Every rendering has these marks. Tools have them in each of their texts. Raises
        BadRequest for tools that cannot be read."""
        if message.role == TOOLS:
            return Message(TOOLS, tools_text([self._guarded_tool(tool) for tool in read_tools(message.content)]))
        return Message(message.role, self._guarded(message.content))

    def _guarded_tool(self, value: Any) -> Any:
        if isinstance(value, str):
            return value if value in _WORDS else self._guarded(value, in_json=True)
        if isinstance(value, list):
            return [self._guarded_tool(each) for each in value]
        if isinstance(value, dict):
            return {self._guarded_tool(key): self._guarded_tool(each) for key, each in value.items()}
        return value

    def _guarded(self, content: str, *, in_json: bool = False) -> str:
        """``in_json``: white space may become escapes, so it is left outside the marks."""
        core = content.strip()
        parts, at = list[str](), 0
        for found in self._names.find(core):
            start = found.start() if in_json else at + len(core[at : found.start()].rstrip())
            stop = found.end() if in_json else _past_space(core, found.end())
            parts += [core[at:start], self._open, core[start:stop], self._close]
            at = stop
        parts.append(core[at:])
        if self._names.may_join(core):
            parts = [self._joint, *parts, self._joint]
        start = content.index(core)
        return "".join([content[:start], *parts, content[start + len(core) :]])

    def ended(self, message: Message, number: int) -> Message:
        """The message with a mark where its content ends, white space left out. Tools have no end: a template writes
        them where it likes."""
        if message.role == TOOLS:
            return message
        core = message.content.rstrip()
        digits = f"{number:b}".translate({48: self._zero, 49: self._one})
        mark = f"{self._end}{digits}{self._end}"
        return Message(message.role, core + mark + message.content[len(core) :])

    def without_ends(self, text: str) -> str:
        return self._end_mark.sub("", text)

    def read(self, text: str) -> RenderedText:
        """Take the marks out of a rendered text."""
        parts, own, cuts, ends = list[str](), list[tuple[int, int]](), list[int](), dict[int, int]()
        at = n = 0  # in the marked text, and characters taken so far
        digits: str | None = None
        for found in self._names.name_or_mark.finditer(text):
            mark = found.group()
            if len(mark) == 1 and mark in self._marks:
                parts.append(text[at : found.start()])
                n += found.start() - at
                at = found.end()
                digits = self._end_or_digit(mark, digits, ends, n)
                if mark == self.cut:
                    cuts.append(n)
            elif mark not in NONCHARACTERS and not self._is_content(text, found):
                own.append((n + found.start() - at, n + found.end() - at))
        parts.append(text[at:])
        return RenderedText("".join(parts), tuple(own), ends, tuple(cuts), self._joint in text)

    def _end_or_digit(self, mark: str, digits: str | None, ends: dict[int, int], place: int) -> str | None:
        """Read an end mark, which is a number between two of the same character; its digits so far."""
        if mark == self._end:
            if digits is None:
                return ""
            if digits:
                ends.setdefault(int(digits, 2), place)
            return None
        if digits is not None and mark in (self._zero, self._one):
            return digits + ("0" if mark == self._zero else "1")
        return digits

    def _is_content(self, text: str, found: re.Match[str]) -> bool:
        """Whether a name stands between the marks that ``guarded`` has put around it."""
        start = found.start()
        while start and text[start - 1].isspace():
            start -= 1
        stop = _past_space(text, found.end())
        return text[start - 1 : start] == self._open and text[stop : stop + 1] == self._close


def _plain(message: Message) -> str:
    """The content, without escapes where it is JSON."""
    return tools_text(read_tools(message.content)) if message.role == TOOLS else message.content


def _past_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return found.end() if found else start

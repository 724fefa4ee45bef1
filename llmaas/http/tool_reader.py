"""Reads calls of tools out of an answer while it comes.

Law: pure. Whatever the text is, all of it comes out: as text, or as calls of tools that were offered. A call begins
once its name is known; an object that calls nothing that was offered is text.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Collection

from llmaas.http.deltas import CallBegin, CallText, Delta, TextDelta
from llmaas.http.tool_forms import HERMES, HERMES_END, LLAMA, MARKS, MISTRAL, ToolForm, new_call_id
from llmaas.http.tool_scan import ObjectScan

_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(arguments|parameters)"\s*:\s*(?=\{)')
_KEY = re.compile(r'\{\s*(?:[^"\s]|"((?:[^"\\]|\\.)*)")', re.DOTALL)
"""The first key of an object; or what stands in its place."""
_KEYS = ("name", "arguments", "parameters", "type", "id", "function")
"""Keys with which an object that is a call may begin."""
_MOST_HEAD = 4096
"""Characters within which the arguments must begin for a call to be passed on while it is written."""


class _At(enum.Enum):
    START = enum.auto()
    """Nothing but white space has come."""
    TEXT = enum.auto()
    BEFORE = enum.auto()
    """A mark has come; an object must follow."""
    HEAD = enum.auto()
    """In an object whose arguments have not begun."""
    ARGUMENTS = enum.auto()
    TAIL = enum.auto()
    """Behind the arguments, in the object."""
    WHOLE = enum.auto()
    """In an object that is looked at when it is complete."""
    AFTER = enum.auto()
    """Behind a call."""


class ToolReader:
    """A Reader that knows the tools ``names``."""

    def __init__(self, names: Collection[str]) -> None:
        self.n_calls = 0
        self._names = names
        self._at = _At.START
        self._held = ""
        """Text that has not come out; in an object, from its opening brace on."""
        self._mark = ""
        """What stood before the object."""
        self._read = 0
        """How much of ``_held`` the scan has read."""
        self._scan = ObjectScan()
        self._form = ToolForm.PLAIN
        self._out: list[Delta] = []

    def feed(self, text: str) -> list[Delta]:
        self._held += text
        while self._step():
            pass
        out, self._out = self._out, []
        return out

    def end(self) -> list[Delta]:
        if self._at in (_At.START, _At.TEXT, _At.BEFORE, _At.HEAD, _At.WHOLE):
            self._text(self._mark + self._held)
        elif self._at is _At.AFTER:
            self._text(self._held.strip())
        self._held = self._mark = ""
        out, self._out = self._out, []
        return out

    def _step(self) -> bool:
        """Take something of what is held; False if more text must come first."""
        match self._at:
            case _At.START:
                return self._start()
            case _At.TEXT:
                return self._pass_text()
            case _At.BEFORE:
                return self._before()
            case _At.HEAD:
                return self._head()
            case _At.ARGUMENTS:
                return self._arguments()
            case _At.TAIL | _At.WHOLE:
                return self._rest_of_object()
            case _At.AFTER:
                return self._after()

    # -- outside of objects

    def _start(self) -> bool:
        begin = self._held.lstrip()
        if not begin:
            return False
        if begin[0] == "{":
            return self._open(self._held[: -len(begin)], begin, ToolForm.PLAIN)
        listed = re.match(r"\[\s*(?=\{)", begin)
        if listed:
            n_before = len(self._held) - len(begin) + listed.end()
            return self._open(self._held[:n_before], self._held[n_before:], ToolForm.LIST)
        if re.fullmatch(r"\[\s*", begin):
            return False
        self._at = _At.TEXT
        return True

    def _pass_text(self) -> bool:
        places = [(place, mark) for mark in MARKS if (place := self._held.find(mark)) >= 0]
        if places:
            place, mark = min(places)
            self._text(self._held[:place])
            self._mark, self._held, self._at = mark, self._held[place + len(mark) :], _At.BEFORE
            return True
        kept = max((n for mark in MARKS for n in range(1, len(mark)) if self._held.endswith(mark[:n])), default=0)
        self._text(self._held[: len(self._held) - kept])
        self._held = self._held[len(self._held) - kept :]
        return False

    def _before(self) -> bool:
        found = re.match(r"[\s\[]*" if self._mark.startswith(MISTRAL) else r"\s*", self._held)
        assert found is not None
        if found.end() == len(self._held):
            return False
        if self._held[found.end()] != "{":
            self._text(self._mark)
            self._mark, self._at = "", _At.TEXT
            return True
        form = {HERMES: ToolForm.HERMES, LLAMA: ToolForm.LLAMA, MISTRAL: ToolForm.MISTRAL}[self._mark]
        return self._open(self._mark + found[0], self._held[found.end() :], form)

    def _after(self) -> bool:
        """Closing marks and separators are no text. Another object follows at once, or after a mark of its own."""
        rest = self._held.lstrip()
        if not rest:
            return False
        if self._form is ToolForm.HERMES:
            if rest.startswith(HERMES_END):
                rest = rest.removeprefix(HERMES_END).lstrip()
            elif HERMES_END.startswith(rest):
                return False
        else:
            rest = rest.lstrip(",;] \n\r\t")
        self._held = rest
        if rest.startswith("{"):
            return self._open("", rest, self._form)
        if any(mark.startswith(rest) for mark in MARKS):
            return False
        self._at = _At.TEXT
        return True

    # -- in objects

    def _open(self, mark: str, rest: str, form: ToolForm) -> bool:
        self._mark, self._held, self._form = mark, rest, form
        self._scan, self._read, self._at = ObjectScan(), 0, _At.HEAD
        return True

    def _head(self) -> bool:
        found = _HEAD.match(self._held)
        if found is None:
            key = _KEY.match(self._held)
            if key is not None and key[1] not in _KEYS:
                self._text(self._mark + self._held[: key.end()])
                self._mark, self._held, self._at = "", self._held[key.end() :], _At.TEXT
                return True
            if len(self._held) > _MOST_HEAD or _n_closed(self._held):
                self._at = _At.WHOLE
                return True
            return False
        if found[1] not in self._names:
            self._at = _At.WHOLE
            return True
        self._begin(found[1], llama=found[2] == "parameters")
        self._scan.until_depth(self._held[: found.end()], 0, 0)
        self._held, self._at = self._held[found.end() :], _At.ARGUMENTS
        return True

    def _arguments(self) -> bool:
        stop = self._scan.until_depth(self._held, 0, 1)
        part = self._held if stop is None else self._held[:stop]
        if part:
            self._out.append(CallText(self.n_calls - 1, part))
        self._held = self._held[len(part) :]
        if stop is None:
            return False
        self._at, self._read = _At.TAIL, 0
        return True

    def _rest_of_object(self) -> bool:
        stop = self._scan.until_depth(self._held, self._read, 0)
        if stop is None:
            self._read = len(self._held)
            return False
        whole, self._held = self._held[:stop], self._held[stop:]
        if self._at is _At.TAIL or self._whole(whole):
            self._at = _At.AFTER
        else:
            self._text(self._mark + whole)
            self._mark, self._at = "", _At.TEXT
        return True

    def _whole(self, text: str) -> bool:
        """A call whose keys come in another order, from its complete object; False if it calls nothing offered."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return False
        found = found["function"] if isinstance(found.get("function"), dict) else found
        arguments = found.get("arguments", found.get("parameters"))
        if found.get("name") not in self._names or not isinstance(arguments, dict):
            return False
        self._begin(found["name"], llama="arguments" not in found)
        self._out.append(CallText(self.n_calls - 1, json.dumps(arguments, ensure_ascii=False)))
        return True

    def _begin(self, name: str, *, llama: bool) -> None:
        if llama and self._form is ToolForm.PLAIN:
            self._form = ToolForm.LLAMA
        self._out.append(CallBegin(self.n_calls, new_call_id(self._form), name))
        self.n_calls += 1
        self._mark = ""

    def _text(self, text: str) -> None:
        if text:
            self._out.append(TextDelta(text))


def _n_closed(text: str) -> bool:
    """Whether the object with which ``text`` begins is complete."""
    return ObjectScan().until_depth(text, 0, 0) is not None

"""The names of a vocabulary's control tokens, and where they are in a text.

Law: pure. Noncharacters (U+FDD0 to U+FDEF) are never part of a name: texts are marked with them (``content_marks``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.records import Message

NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
_MARK = "[\ufdd0-\ufdef]"
_ROLES = frozenset(["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation", "tools"])
_ROLE = re.compile(r"[\w.-]+(?: [\w.-]+)*")


@frozen(eq=False)
class ControlNames:
    """Names, compiled for search; see ``control_names``."""

    names: tuple[str, ...]
    pattern: re.Pattern[str] | None
    """Matches the longest name at a place; None if there are no names."""
    name_or_mark: re.Pattern[str]
    _starts: re.Pattern[str] | None
    _ends: re.Pattern[str] | None
    _inside: str
    longest: int = 0
    """Characters of the longest name."""

    def find(self, text: str) -> Iterator[re.Match[str]]:
        return self.pattern.finditer(text) if self.pattern else iter(())

    def are_in(self, text: str) -> bool:
        return self.pattern is not None and self.pattern.search(text) is not None

    def may_join(self, text: str) -> bool:
        """Whether a name may form of ``text`` and of what is written before or behind it."""
        if self._starts is None or self._ends is None or not text:
            return False
        return bool(
            self._starts.match(text)
            or self._ends.match(text[-self.longest :][::-1])
            or (len(text) < self.longest and text in self._inside)
        )

    def crosses(self, text: str, start: int, stop: int) -> bool:
        """Whether some name is partly in the text from ``start`` to ``stop``, which is a name, and partly beside it."""
        match = self.pattern.match if self.pattern else lambda text, at: None
        before = (match(text, at) for at in range(max(0, start - self.longest), start))
        within = (match(text, at) for at in range(start, stop))
        return any(found and found.end() > start for found in before) or any(
            found and found.end() > stop for found in within
        )

    def refuse_roles(self, messages: Iterable[Message]) -> None:
        """Raise BadRequest for a role that a template could make a control token of: many write the role itself, some
        between ``<|`` and ``|>``."""
        for role in {message.role for message in messages} - _ROLES:
            if not _ROLE.fullmatch(role) or role in self._inside:
                raise BadRequest(
                    f"the role {role!r} cannot be used: it is part of a control token's name, or no word",
                    hint=f"Usual roles are {', '.join(sorted(_ROLES))}.",
                )


@lru_cache(maxsize=8)
def control_names(names: tuple[str, ...]) -> ControlNames:
    """The names of control tokens, for search. Some vocabularies have a thousand: this takes up to 0.1 s, once."""
    known = tuple(sorted({name for name in names if name}))
    if not known:
        return ControlNames((), None, re.compile(_MARK), None, None, "")
    any_name = _any_of(known)
    return ControlNames(
        names=known,
        pattern=re.compile(any_name),
        name_or_mark=re.compile(f"{any_name}|{_MARK}"),
        _starts=_compiled([name[i:] for name in known for i in range(1, len(name))]),
        _ends=_compiled([name[:i][::-1] for name in known for i in range(1, len(name))]),
        _inside="\n".join(known),
        longest=max(map(len, known)),
    )


NO_NAMES = control_names(())


def _compiled(texts: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile(_any_of(sorted(set(texts)))) if texts else None


def _any_of(texts: Sequence[str]) -> str:
    """An expression for any of the sorted ``texts``, the longest first. It branches character by character, so that
    each character of a searched text is looked at a few times, however many texts there are."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[:1], []).append(text[1:])
    ends = bool(groups.pop("", None))
    branches = []
    for first, rests in groups.items():
        rest = _any_of(rests) if rests != [""] else ""
        branches.append(re.escape(first) + rest)
    if not branches:
        return ""
    whole = branches[0] if len(branches) == 1 and not ends else f"(?:{'|'.join(branches)})"
    return f"{whole}?" if ends else whole

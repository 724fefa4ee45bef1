"""Where a JSON object ends in text that comes in pieces.

Law: pure; each character is looked at once.
"""

from __future__ import annotations


class ObjectScan:
    """Follows one object from its opening brace. ``depth`` is how many braces and brackets are open."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = self._escaped = False

    def until_depth(self, text: str, start: int, depth: int) -> int | None:
        """Go on from ``start`` until so many are open again; the place behind that, or None if all of it was read."""
        for at in range(start, len(text)):
            self._take(text[at])
            if not self._in_string and self.depth == depth and text[at] in "}]":
                return at + 1
        return None

    def _take(self, char: str) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self.depth += 1
        elif char in "}]":
            self.depth -= 1

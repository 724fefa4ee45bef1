"""From token bytes to streamed text: whole UTF-8 characters, and stop strings.

Law: pure. Text is held back only while it may still become a stop string, or is an unfinished character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes the bytes of tokens, gives text. After ``stopped`` it gives no more."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = tuple(stop)
        self._held = ""
        self._sent: list[str] = []
        self.stopped = False
        """A stop string has come."""

    @property
    def text(self) -> str:
        """All text given out so far."""
        return "".join(self._sent)

    def feed(self, data: bytes) -> str:
        """The text that is certain now. A stop string and what follows it are never given out."""
        return self._release(self._decode(data))

    def end(self) -> str:
        """The answer has ended: the text that was still held back."""
        if self.stopped:
            return ""
        rest = self._release(self._decode(b"", True))
        if not self.stopped:
            rest += self._held
            self._sent.append(self._held)
            self._held = ""
        return rest

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [self._held.index(stop) for stop in self._stop if stop in self._held]
        if found:
            self.stopped = True
            cut = min(found)
        else:
            cut = len(self._held) - self._longest_stop_prefix()
        out, self._held = self._held[:cut], self._held[cut:]
        self._sent.append(out)
        return out

    def _longest_stop_prefix(self) -> int:
        """Length of the longest end of the held text that may begin a stop string."""
        for n in range(min(len(self._held), max(map(len, self._stop), default=0)), 0, -1):
            tail = self._held[-n:]
            if any(s.startswith(tail) for s in self._stop):
                return n
        return 0

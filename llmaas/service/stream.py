"""From token bytes to streamed text: whole UTF-8 characters, and stop strings.

Law: pure. Text is held back only while it may still become a stop string or an unfinished character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Feed token bytes, take text. After ``stopped`` nothing more comes."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = tuple(stop)
        self._held = ""
        self._sent: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All text given out so far."""
        return "".join(self._sent)

    def feed(self, data: bytes) -> str:
        """Text that is certain now; a stop string and what follows it never comes out."""
        return self._release(self._decode(data))

    def end(self) -> str:
        """The answer has ended: whatever was held back."""
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
        cut = min((i for i in (self._held.find(s) for s in self._stop) if i >= 0), default=-1)
        if cut >= 0:
            self.stopped = True
        else:
            cut = len(self._held) - self._longest_hope()
        out, self._held = self._held[:cut], self._held[cut:]
        self._sent.append(out)
        return out

    def _longest_hope(self) -> int:
        """Length of the longest end of the held text that may begin a stop string."""
        for n in range(min(len(self._held), max(map(len, self._stop), default=0)), 0, -1):
            tail = self._held[-n:]
            if any(s.startswith(tail) for s in self._stop):
                return n
        return 0

"""From token bytes to streamed text: whole UTF-8 characters, and stop strings.

Law: pure. Text is held back only while it may still become a stop string, or is an unfinished character. What was
given out is all that the app knows of the answer: ``told`` says which tokens hold it.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes the bytes of tokens, gives text. After ``stopped`` it gives no more."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self._sent: list[str] = []
        self._n_decoded = 0
        """Characters that were fed, held back or not."""
        self._ends: list[int | None] = []
        """For each token that was fed, where its text ends; None if it ends within a character."""
        self.stopped_by: str | None = None
        """The stop string that has come."""

    @property
    def stopped(self) -> bool:
        return self.stopped_by is not None

    @property
    def text(self) -> str:
        """All text given out so far."""
        return "".join(self._sent)

    def feed(self, data: bytes) -> str:
        """The text that is certain now, after a token of these bytes. A stop string and what follows it are never
        given out."""
        new = self._decoder.decode(data)
        if not self._stop:  # nothing is held back
            self._sent.append(new)
            return new
        self._n_decoded += len(new)
        self._ends.append(None if self._decoder.getstate()[0] else self._n_decoded)
        return self._release(new)

    def told(self) -> tuple[int, str]:
        """What was given out of an answer with stop strings: so many whole tokens, and this text after them.

        The text is not empty where a token holds text that was given out and text that was not.
        """
        text = self.text
        n, end = 0, 0
        for i, at in enumerate(self._ends, 1):
            if end == len(text):
                break
            if at is not None and at <= len(text):
                n, end = i, at
        return n, text[end:]

    def end(self) -> str:
        """The answer has ended: the text that was still held back."""
        if self.stopped:
            return ""
        rest = self._release(self._decoder.decode(b"", True))
        if not self.stopped:
            rest += self._held
            self._sent.append(self._held)
            self._held = ""
        return rest

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [(self._held.index(stop), stop) for stop in self._stop if stop in self._held]
        if found:
            cut, self.stopped_by = min(found, key=lambda each: each[0])
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

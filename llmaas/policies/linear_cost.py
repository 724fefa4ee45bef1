"""Costs learned while the service runs: what an engine, a disk or a decoder takes for so much work.

Law: pure. A cost is linear in two features (ServerlessLLM's q + n/b and a x tokens + b, arXiv 2401.14351), fitted by
least squares; old observations fade, so that a disk that becomes slower is noticed.
"""

from __future__ import annotations

_FORGET = 0.85
"""What an observation counts after the next one: about the last seven matter."""
_SURPRISE, _FORGET_MUCH = 2.0, 0.25
"""An observation so many times off what was expected says that something has changed: the others count little then."""
_SHAPE = 0.01
"""How much the guess counts, of one observation, for what cannot be told from what was seen: how the seconds divide
between the two features. It says nothing of how many seconds there are."""

_NOTHING = 1e-9
"""Seconds: work that is guessed to take less is none."""


class LinearCost:
    """seconds = ``a`` x + ``b`` y, both at least 0. ``LinearCost(a, b)`` begins with a guess, both above 0."""

    def __init__(self, a: float, b: float) -> None:
        self._guess = a, b
        self._sums = [0.0] * 7
        self.a, self.b = a, b

    def __call__(self, x: float, y: float) -> float:
        """Seconds that the work is expected to take."""
        return self.a * x + self.b * y

    def observe(self, x: float, y: float, seconds: float) -> None:
        """The work took so long. What was no work says nothing."""
        guess = self._guess[0] * x + self._guess[1] * y
        if seconds <= 0.0 or guess < _NOTHING:
            return
        expected = self(x, y)
        surprise = max(seconds, expected) > _SURPRISE * min(seconds, expected)
        forget = _FORGET_MUCH if surprise else _FORGET
        news = (x * x, x * y, y * y, x * seconds, y * seconds, seconds * seconds, guess * guess)
        self._sums = [forget * s + new for s, new in zip(self._sums, news, strict=True)]
        self._fit()

    def _fit(self) -> None:
        """Least squares of seconds - (a x + b y), and weakly of (a / guess - b / guess) x guessed seconds."""
        (a0, b0), (xx, xy, yy, xs, ys, squares, guessed) = self._guess, self._sums
        weight = _SHAPE * guessed
        xx, yy, xy = xx + weight / a0**2, yy + weight / b0**2, xy - weight / (a0 * b0)
        det = xx * yy - xy * xy
        if det <= 1e-12 * xx * yy:
            scale = (squares / guessed) ** 0.5
            self.a, self.b = a0 * scale, b0 * scale
            return
        self.a, self.b = (xs * yy - ys * xy) / det, (ys * xx - xs * xy) / det
        if self.a < 0:
            self.a, self.b = 0.0, ys / yy
        elif self.b < 0:
            self.a, self.b = xs / xx, 0.0

"""Costs that are learned while the service runs: seconds that an engine, a disk or a decoder takes for some work.

Law: pure. A cost is linear in two features (q + n/b and a x tokens + b in ServerlessLLM, arXiv 2401.14351). It is
fitted by weighted least squares with exponential forgetting, so that a disk that becomes slower is noticed.
"""

from __future__ import annotations

_FORGET = 0.85
"""The weight of an observation is multiplied by this at each further one: about the last seven matter."""
_SURPRISE, _FORGET_MUCH = 2.0, 0.25
"""An observation that differs from its prediction by this factor says that something has changed: then the weight of
all earlier ones is multiplied by _FORGET_MUCH instead."""
_RIDGE = 0.01
"""Weight of the prior, in observations (a ridge term). It pulls only the ratio a:b toward the prior, not the scale: it
decides how the seconds divide between the two features where the observations do not tell."""

_NOTHING = 1e-9
"""Seconds. Work that the prior expects to take less is no work."""


class LinearCost:
    """seconds = ``a`` x + ``b`` y, with a and b at least 0.

    ``LinearCost(a, b)`` starts from a prior guess, both above 0. The first observation already sets the scale:

    >>> disk = LinearCost(1e-3, 1e-2)  # seconds for each read, and for each megabyte
    >>> disk(1, 10)
    0.101
    >>> disk.observe(1, 10, seconds=1.01)  # ten times slower than guessed
    >>> round(disk(1, 20), 2)
    2.01
    """

    def __init__(self, a: float, b: float) -> None:
        self._prior = a, b
        self._sums = [0.0] * 7
        """Weighted sums of xx, xy, yy, xs, ys, ss and gg; s: seconds observed, g: seconds by the prior."""
        self.a, self.b = a, b

    @property
    def observed(self) -> bool:
        """Whether it rests on an observation, and not on the prior alone."""
        return self._sums[6] > 0

    def __call__(self, x: float, y: float) -> float:
        """Seconds that the work is expected to take."""
        return self.a * x + self.b * y

    def observe(self, x: float, y: float, seconds: float) -> None:
        """Work with the features ``x`` and ``y`` took ``seconds``. Ignored if it was no work or took no time."""
        guess = self._prior[0] * x + self._prior[1] * y
        if seconds <= 0.0 or guess < _NOTHING:
            return
        expected = self(x, y)
        surprise = max(seconds, expected) > _SURPRISE * min(seconds, expected)
        forget = _FORGET_MUCH if surprise else _FORGET
        terms = (x * x, x * y, y * y, x * seconds, y * seconds, seconds * seconds, guess * guess)
        self._sums = [forget * s + term for s, term in zip(self._sums, terms, strict=True)]
        self._fit()

    def _fit(self) -> None:
        """Minimise the squares of s - (a x + b y), and weakly that of (a / a0 - b / b0) g; a0, b0 is the prior."""
        (a0, b0), (xx, xy, yy, xs, ys, squares, guessed) = self._prior, self._sums
        weight = _RIDGE * guessed
        xx, yy, xy = xx + weight / a0**2, yy + weight / b0**2, xy - weight / (a0 * b0)
        det = xx * yy - xy * xy
        if det <= 1e-12 * xx * yy:  # nothing to tell a from b: scale the prior
            scale = (squares / guessed) ** 0.5
            self.a, self.b = a0 * scale, b0 * scale
            return
        self.a, self.b = (xs * yy - ys * xy) / det, (ys * xx - xs * xy) / det
        if self.a < 0:
            self.a, self.b = 0.0, ys / yy
        elif self.b < 0:
            self.a, self.b = xs / xx, 0.0

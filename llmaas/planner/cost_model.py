"""The cost model: seconds that computing, reading and placing chunks take on this machine.

Law: it learns from how long actions took, from nothing else. The guesses that it begins with matter for the first few
switches at most.
"""

from __future__ import annotations

from llmaas.frozen import frozen
from llmaas.planner.actions import RunStep
from llmaas.policies.linear_cost import LinearCost

_MB = 1e6
_K = 1024
_MOST_DECODES = 0.5
"""Decodes per token of a prompt up to which the duration of a step says what the prompt costs."""
_LEAST_PREFILL = 16
"""Tokens of a prompt from which on it does."""
_DEVIATES = 0.1
"""Only decode steps that take so much less or more than expected are learned from: there are many others."""


@frozen
class LearnedCosts:
    """What was learned, as plain numbers. Each pair is (a, b) of a cost a x + b y; None: it was not observed."""

    compute: tuple[float, float] | None
    """Seconds per token of a prompt, and per token and 1024 tokens before it."""
    decode: tuple[float, float] | None
    """Seconds per step, and per sequence in it."""
    read: tuple[float, float] | None
    """Seconds per load from DISK, and per megabyte of coded chunks, decoding and placing included."""
    place: tuple[float, float] | None
    """Seconds per load from the POOL, and per megabyte of coded chunks."""


class SwitchCosts:
    """Seconds of computing, reading and placing. Bytes are of coded chunks."""

    def __init__(self) -> None:
        self._compute = LinearCost(3e-3, 1e-3)
        """Per token, and per token and 1024 tokens before it."""
        self._decode = LinearCost(5e-3, 5e-3)
        """Per step, and per sequence in it."""
        self._read = LinearCost(2e-3, 1e-2)
        """Per read, and per megabyte."""
        self.disk_known = False
        """Whether a read was observed."""
        self._place = LinearCost(1e-3, 2e-3)
        """Per load, and per megabyte."""

    @property
    def learned(self) -> LearnedCosts:
        def pair(cost: LinearCost) -> tuple[float, float] | None:
            return (cost.a, cost.b) if cost.observed else None

        return LearnedCosts(pair(self._compute), pair(self._decode), pair(self._read), pair(self._place))

    def compute(self, start: int, stop: int) -> float:
        """Seconds to prefill tokens ``start`` .. ``stop - 1``."""
        return self._compute(stop - start, _looked_back(start, stop))

    def decode(self, n: int) -> float:
        """Seconds of a step that generates one token for each of ``n`` sequences; above 0."""
        return max(1e-9, self._decode(1, n))

    def slice(self, start: int, seconds: float) -> int:
        """How many tokens from ``start`` on can be prefilled in so many seconds."""
        a, b = self._compute.a, self._compute.b / _K
        # a n + b (start + n/2) n = seconds, for n
        slope = a + b * start
        if slope <= 0:
            return 1 << 30
        root = (slope * slope + 2 * b * max(0.0, seconds)) ** 0.5
        return int((root - slope) / b) if b > 1e-12 * slope else int(max(0.0, seconds) / slope)

    def read(self, n_reads: int, nbytes: int) -> float:
        """Seconds to read from DISK."""
        return self._read(n_reads, nbytes / _MB)

    def place(self, nbytes: int) -> float:
        """Seconds to decode chunks and put them into cells."""
        return self._place(1, nbytes / _MB)

    def place_more(self, nbytes: int) -> float:
        """The same, as a part of more."""
        return self._place(0, nbytes / _MB)

    def bring(self, nbytes: int) -> float:
        """Seconds to read these bytes from DISK and to place them, as a part of more."""
        return self._read(0, nbytes / _MB) + self.place_more(nbytes)

    def observe_step(self, step: RunStep, steps: int, seconds: float) -> None:
        """A burst took so long. Learned from if it only decoded, or if a prefill took (nearly) all of its step."""
        n_prefill = n_decode = 0
        for item in step.items:
            n = item.stop - item.start
            if n > 1:
                n_prefill += n
            else:
                n_decode += 1
        if not n_prefill:
            expected = self._decode(1, n_decode) * steps
            if abs(seconds - expected) > _DEVIATES * expected:
                self._decode.observe(1, n_decode, seconds / steps)
            return
        seconds -= n_decode * self._decode.b  # what they add to a step that reads the weights anyway
        if n_prefill < _LEAST_PREFILL or n_decode > _MOST_DECODES * n_prefill:
            return
        looked_back = sum(_looked_back(i.start, i.stop) for i in step.items if i.stop - i.start > 1)
        self._compute.observe(n_prefill, looked_back, seconds)

    def observe_read(self, nbytes: int, seconds: float) -> None:
        """A read took so long."""
        self.disk_known = True
        self._read.observe(1, nbytes / _MB, seconds)

    def observe_place(self, nbytes: int, seconds: float) -> None:
        """Decoding chunks and putting them into cells took so long."""
        self._place.observe(1, nbytes / _MB, seconds)


def _looked_back(start: int, stop: int) -> float:
    """Sum over the tokens of how many thousand come before each."""
    return (stop - start) * (start + stop) / 2 / _K

"""What bringing chunks back costs on this machine, learned from when actions began and when they were answered.

Law: it hears of durations only; the guesses that it begins with matter for the first few switches at most.
"""

from __future__ import annotations

from llmaas.planner.actions import RunStep
from llmaas.policies.linear_cost import LinearCost

_MB = 1e6
_K = 1024
_MOST_DECODES = 0.5
"""Decodes per token of a prompt up to which a step tells what the prompt costs."""
_LEAST_PREFILL = 16
_NEWS = 0.1
"""What a decode step that takes so much less or more than expected tells, is noted."""


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
        self._place = LinearCost(1e-3, 2e-3)
        """Per load, and per megabyte."""

    def compute(self, start: int, stop: int) -> float:
        """Prefilling tokens start .. stop-1."""
        return self._compute(stop - start, _looked_back(start, stop))

    def decode(self, n: int) -> float:
        """A step that generates one token for each of ``n`` sequences; above 0."""
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
        return self._read(n_reads, nbytes / _MB)

    def place(self, nbytes: int) -> float:
        """Decoding chunks and putting them into cells."""
        return self._place(1, nbytes / _MB)

    def stepped(self, step: RunStep, steps: int, seconds: float) -> None:
        """A burst ended; one of decodes only, or a prefill that (nearly) fills its step, tells what a token costs."""
        n_prefill = n_decode = 0
        for item in step.items:
            n = item.stop - item.start
            if n > 1:
                n_prefill += n
            else:
                n_decode += 1
        if not n_prefill:
            expected = self._decode(1, n_decode) * steps
            if abs(seconds - expected) > _NEWS * expected:  # there are many such steps
                self._decode.observe(1, n_decode, seconds / steps)
            return
        seconds -= n_decode * self._decode.b  # what they add to a step that reads the weights anyway
        if n_prefill < _LEAST_PREFILL or n_decode > _MOST_DECODES * n_prefill:
            return
        looked_back = sum(_looked_back(i.start, i.stop) for i in step.items if i.stop - i.start > 1)
        self._compute.observe(n_prefill, looked_back, seconds)

    def has_read(self, nbytes: int, seconds: float) -> None:
        self.disk_known = True
        self._read.observe(1, nbytes / _MB, seconds)

    def has_placed(self, nbytes: int, seconds: float) -> None:
        self._place.observe(1, nbytes / _MB, seconds)


def _looked_back(start: int, stop: int) -> float:
    """Sum over the tokens of how many thousand come before each."""
    return (stop - start) * (start + stop) / 2 / _K

"""F3. With how many bits a chunk is coded.

Law: a chunk is coded once, from values the model computed. The last, partial chunk of a context will grow and be
coded again, so it stays lossless until it is full: its decoded form is then the computed form, and nothing
lossy is ever coded a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llmaas.records import CHUNK_TOKENS, LOSSLESS, Precision


class PrecisionPolicy(Protocol):
    def choose(self, index: int, n_tokens: int) -> Precision:
        """Precision for chunk ``index`` of a context, which holds ``n_tokens`` tokens."""


class Uniform:
    """Every full chunk at the same precision."""

    def __init__(self, precision: Precision) -> None:
        self._precision = precision

    def choose(self, index: int, n_tokens: int) -> Precision:
        return self._precision if n_tokens == CHUNK_TOKENS else LOSSLESS


PRECISION: dict[str, Callable[[Precision], PrecisionPolicy]] = {"uniform": Uniform}

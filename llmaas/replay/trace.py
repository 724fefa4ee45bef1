"""Traces: which app calls when, for which context, with how many tokens.

Law: pure; a line is checked when it is read, and an error names the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmaas.calls import DEFAULT_TERMS, Terms
from llmaas.errors import BadRequest


@dataclass(frozen=True, slots=True)
class TraceCall:
    """One line of a trace: at second ``t`` a context gets ``prompt`` tokens and generates ``generate``.

    ``priority``, ``deadline_s`` and ``rate`` as in ``Terms``. Raises ValueError.
    """

    t: float
    app: str
    context: str
    prompt: int
    generate: int
    priority: int = DEFAULT_TERMS.priority
    deadline_s: float | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.prompt < 0 or self.generate < 0 or self.prompt + self.generate == 0:
            raise ValueError("a call needs prompt or generate tokens")
        _ = Terms(self.priority, self.deadline_s, self.rate)  # this checks them


def read_trace(lines: Iterable[str]) -> Iterator[TraceCall]:
    """The calls of a trace of JSON lines (traces/README.md). Raises BadRequest with the number of a wrong line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            yield TraceCall(**json.loads(line))
        except (TypeError, ValueError) as e:
            raise BadRequest(f"trace line {number}: {e}") from e

"""One call of a trace, as a line of JSON (docs/traces.md).

Law: pure; a line is checked when it is read, and an error names the line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator

from llmaas.calls import DEFAULT_TERMS, Terms
from llmaas.errors import BadRequest
from llmaas.frozen import frozen


@frozen
class TraceCall:
    """One line of a trace: at second ``t`` a context gets ``prompt`` tokens and generates ``generate``.

    ``priority``, ``deadline_s`` and ``rate`` as in ``Terms``. ``text``: what the prompt says; without it, programs that
    need text take any of ``prompt`` tokens. ``prefix``: contexts with the same one begin with the same
    ``prefix_tokens`` tokens, which ``prompt`` of a context's first call includes. Raises ValueError.
    """

    t: float
    app: str
    context: str
    prompt: int
    generate: int
    priority: int = DEFAULT_TERMS.priority
    deadline_s: float | None = None
    rate: float | None = None
    text: str | None = None
    prefix: str = ""
    prefix_tokens: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.t, (int, float)) or not 0 <= self.t < math.inf:
            raise ValueError(f"t must be seconds, 0 or more, not {self.t!r}")
        if not all(isinstance(name, str) for name in (self.app, self.context, self.prefix, self.text or "")):
            raise ValueError("app, context, prefix and text are texts")
        if not all(isinstance(n, int) for n in (self.prompt, self.generate, self.prefix_tokens)):
            raise ValueError("prompt, generate and prefix_tokens are whole numbers")
        if self.prompt < 0 or self.generate < 0 or self.prompt + self.generate == 0:
            raise ValueError("a call needs prompt or generate tokens")
        if not 0 <= self.prefix_tokens <= self.prompt:
            raise ValueError("prefix_tokens is a part of prompt")
        if bool(self.prefix) != bool(self.prefix_tokens):
            raise ValueError("prefix and prefix_tokens go together")
        _ = Terms(self.priority, self.deadline_s, self.rate)  # this checks them

    def line(self) -> str:
        """The call as a line of a trace, without what is as it is by itself."""
        fields = dataclasses.fields(self)
        shown = {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}
        return json.dumps(shown, ensure_ascii=False)


def read_trace(lines: Iterable[str]) -> Iterator[TraceCall]:
    """The calls of a trace of JSON lines. Raises BadRequest with the number of a wrong line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            yield TraceCall(**json.loads(line))
        except (TypeError, ValueError) as e:
            raise BadRequest(f"trace line {number}: {e}") from e

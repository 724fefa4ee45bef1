"""What llmaas offers beyond the APIs of others: the field ``llmaas`` of a request, and headers of the same names.

Law: pure. A field beats its header. Unknown fields are refused, since they could not do what they ask.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from llmaas.calls import Priority, Terms
from llmaas.http.errors import HttpError

_PREFIX = "x-llmaas-"
_NUMBERS = ("priority", "deadline", "rate")


class Extensions(msgspec.Struct, forbid_unknown_fields=True):
    """How a request is served: in which context, and on what terms."""

    context: str | None = None
    """Name or id of a context that lasts: the request's messages are added to it. It is made if it is absent."""
    priority: int | str | None = None
    """0 (most urgent) to 9, or interactive, normal, background."""
    deadline: float | None = None
    """Seconds after which the request fails."""
    rate: float | None = None
    """Most tokens per second."""
    adapter: str | None = None
    """A LoRA adapter; "" is the bare model."""
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    penalty_last_n: int | None = None
    grammar: str | None = None
    """GBNF that the answer keeps to."""
    progress: bool | None = None
    """A stream of a chat tells how far reading the prompt has come."""
    on_full: str | None = None
    """``error`` or ``shift``: what happens when the context is full."""

    def terms(self, adapter: str | None) -> Terms:
        """The terms of the call; ``adapter`` is what the model's name says. Raises HttpError."""
        try:
            return Terms(self._priority(), self.deadline, self.rate, adapter if self.adapter is None else self.adapter)
        except ValueError as error:
            raise HttpError(400, str(error), param=f"llmaas.{str(error).split()[0].removesuffix('_s')}") from None

    def _priority(self) -> int:
        if self.priority is None:
            return int(Priority.NORMAL)
        if isinstance(self.priority, int):
            return self.priority
        names = {priority.name.lower(): int(priority) for priority in Priority}
        if len(self.priority) == 1 and self.priority in "0123456789":
            return int(self.priority)
        if self.priority.lower() not in names:
            raise ValueError(f"priority is {self.priority[:40]!r}; it must be 0 to 9, or one of {', '.join(names)}")
        return names[self.priority.lower()]


def with_headers(given: Extensions | None, headers: Mapping[str, str]) -> Extensions:
    """The extensions of a request: its field, and what its headers add. Raises HttpError."""
    found: dict[str, object] = {}
    for name in ("context", "adapter", *_NUMBERS):
        text = headers.get(_PREFIX + name)
        if text is None or (given is not None and getattr(given, name) is not None):
            continue
        try:
            found[name] = float(text) if name in ("deadline", "rate") else text
        except ValueError:
            raise HttpError(400, f"{text[:40]!r} is not a number", param=_PREFIX + name) from None
    if not found:
        return given or Extensions()
    return msgspec.structs.replace(given or Extensions(), **found)

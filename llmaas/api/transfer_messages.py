"""The requests that take a context from one model to another: out of the one, into the other.

Law: pure.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

from llmaas.api.names import MAX_MESSAGES, MAX_ROLE, check_context, check_name
from llmaas.records import TOKEN_BYTES, ExportedContext

MAX_SPANS = 3 * MAX_MESSAGES
"""Each message may have the chat template's tokens before and behind it."""


@dataclass(frozen=True, slots=True)
class Export:
    """All that a context consists of, for ``Import`` on another model."""

    context: str

    def __post_init__(self) -> None:
        check_context(self.context)


@dataclass(frozen=True, slots=True)
class Import:
    """A new context that begins as an exported one; ``name``: another name than that had."""

    exported: ExportedContext
    name: str | None = None
    adapter: str = ""

    def __post_init__(self) -> None:
        check_name(self.name if self.name is not None else self.exported.name)
        spans = self.exported.spans
        if len(spans) > MAX_SPANS:
            raise ValueError(f"field 'exported.spans': at most {MAX_SPANS} are allowed, not {len(spans)}")
        for i, span in enumerate(spans):
            where = f"field 'exported.spans[{i}]'"
            if len(span.tokens) % TOKEN_BYTES:
                raise ValueError(f"{where}: tokens take {TOKEN_BYTES} bytes each, not {len(span.tokens)} in all")
            if span.role is None:
                continue
            if not 0 < len(span.role) <= MAX_ROLE or not span.role.isprintable():
                raise ValueError(f"{where}: a role has 1 to {MAX_ROLE} characters, not {reprlib.repr(span.role)}")
            if span.text is None:
                raise ValueError(f"{where}: a message has a text")


TransferRequest = Export | Import
TRANSFER_OPERATIONS: dict[str, type[TransferRequest]] = {"export": Export, "import": Import}

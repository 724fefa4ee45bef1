"""Messages as callers hand them to a client.

Law: pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmaas.api.record_maps import from_map
from llmaas.records import Message

Messages = str | Iterable[Message | Mapping[str, str]]
"""What a caller may hand a client: Message objects, or maps with ``role`` and ``content``; a string is one message of
the user."""


def as_messages(given: Messages) -> tuple[Message, ...]:
    """Messages from what a caller may hand a client. Raises BadRequest that names the one at fault."""
    if isinstance(given, str):
        return (Message("user", given),)
    return tuple(
        m if isinstance(m, Message) else from_map(Message, m, strict=True, where=f"messages[{i}]")
        for i, m in enumerate(given)
    )

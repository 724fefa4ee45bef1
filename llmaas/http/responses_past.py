"""Earlier responses, as a request may name them by ``previous_response_id``.

Law: an id says which context holds the conversation, how many messages were answered, and a hash of them, so that a
context that is another by now is not taken for the same. Responses are bounded as contexts are: each is there for as
long as its context. Besides, hashes of the last answers are kept.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

from llmaas.api.async_client import AsyncClient
from llmaas.errors import UnknownContext
from llmaas.http.errors import HttpError
from llmaas.http.toolbox import TOOLS_ROLE, before_tools
from llmaas.records import Message

MOST_ANSWERS_KNOWN = 4096
_ID = re.compile(r"resp_([0-9a-f]{16})([0-9a-f]{4})([01])([0-9a-f]{16})[0-9a-f]{8}")


def response_id(context: str, messages: Sequence[Message], *, own_system: bool) -> str:
    """The id of the response to ``messages`` in a context; ``own_system``: the first of them is the instructions, or
    tells of tools alone, and is not carried over to the next. A context by name is not gone on with by ids."""
    if not re.fullmatch("[0-9a-f]{16}", context):
        return f"resp_{secrets.token_hex(20)}"
    return f"resp_{context}{len(messages) % (1 << 16):04x}{own_system:d}{_digest(messages)}{secrets.token_hex(4)}"


class PastResponses:
    """Finds the conversations of earlier responses."""

    def __init__(self) -> None:
        self._answers: dict[str, str] = {}

    def remember(self, response: str, answer: str) -> None:
        """What the last responses were, so that another answer to the same question is not taken for one of them."""
        self._answers[response] = _digest([Message("assistant", answer)])
        if len(self._answers) > MOST_ANSWERS_KNOWN:
            del self._answers[next(iter(self._answers))]

    async def of(self, client: AsyncClient, previous: str | None) -> list[Message]:
        """The conversation up to a response and with it, without instructions and tools. Raises HttpError if it is not
        there."""
        if previous is None:
            return []
        found = _ID.fullmatch(previous)
        if found is None:
            raise _gone(previous)
        n_asked = int(found[2], 16)
        try:
            shown = (await client.show(found[1])).messages[: n_asked + 1]
        except UnknownContext:
            raise _gone(previous) from None
        answer = self._answers.get(previous)
        if len(shown) <= n_asked or _digest(shown[:-1]) != found[4] or answer not in (None, _digest(shown[-1:])):
            raise _gone(previous)
        said = [message for message in shown if message.role != TOOLS_ROLE]
        if said[0].role != "system":
            return said
        return said[1:] if found[3] == "1" else [Message("system", before_tools(said[0])), *said[1:]]


def _digest(messages: Sequence[Message]) -> str:
    text = "\0".join(f"{message.role}\0{message.content.strip()}" for message in messages)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _gone(previous: str) -> HttpError:
    return HttpError(
        404,
        f"the response {previous[:80]!r} is not there (any more). Send the conversation as input instead.",
        param="previous_response_id",
        code="previous_response_not_found",
    )

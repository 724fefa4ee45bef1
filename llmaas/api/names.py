"""Bounds of the small texts in requests: names, roles, stop strings.

Law: pure. What is out of bounds is a ValueError that says what is allowed.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping

from llmaas.calls.sampling import MAX_BIASES
from llmaas.records import Message

MAX_NAME = 128
"""Characters of a context's name."""
MAX_CONTEXT = 256
"""Characters of what names a context in a request: an id, or a name that an earlier version allowed."""
MAX_MESSAGES = 4096
"""Messages of one request."""
MAX_ROLE = 64
"""Characters of a message's role."""
CONTEXTS_OF_APP = ("refuse", "keep", "delete")
"""What may become of an app's contexts when it gets or loses a token."""
MAX_STOPS = 16
"""Stop strings of one request."""
MAX_STOP = 1024
"""Characters of a stop string."""

_LISTS = {
    "messages": (MAX_MESSAGES, f"field 'messages': send several appends; at most {MAX_MESSAGES} messages are allowed"),
    "stop": (MAX_STOPS, f"stop may hold {MAX_STOPS} strings at most"),
    "logit_bias": (MAX_BIASES, f"logit_bias may have {MAX_BIASES} tokens"),
}
"""How long the lists of a request may be, and how that is said."""


def check_name(name: str | None) -> None:
    """Raises ValueError for a new context's name that is no good; None is good."""
    if name is None:
        return
    _check_text("name", name)
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"field 'name': 1 to {MAX_NAME} printable characters are wanted, not {reprlib.repr(name)}")


def check_context(context: str) -> None:
    """Raises ValueError for text that can be neither an id nor a name."""
    _check_text("context", context)
    if len(context) > MAX_CONTEXT:
        raise ValueError(f"field 'context': at most {MAX_CONTEXT} characters are allowed, not {len(context)}")


def check_contexts(what: str) -> None:
    """Raises ValueError unless it is one of ``CONTEXTS_OF_APP``."""
    if what not in CONTEXTS_OF_APP:
        raise ValueError(f"field 'contexts' is one of {', '.join(CONTEXTS_OF_APP)}, not {reprlib.repr(what)}")


def check_limit(limit: int | None, field: str = "limit") -> None:
    """Raises ValueError for a number of items that is no good; None is good."""
    if limit is not None and limit < 1:
        raise ValueError(f"field '{field}' must be at least 1, not {limit}")


def check_one_target(request: int | None, call: int | None) -> None:
    """Raises ValueError unless one of the two is given."""
    if (request is None) == (call is None):
        raise ValueError("give request or call, one of them")


def check_lengths(fields: Mapping[str, object]) -> None:
    """Raises ValueError for a list that is too long, before anything is made of what is in it: to make records of
    10,000 biases takes 20 ms."""
    for name, (most, words) in _LISTS.items():
        value = fields.get(name)
        if type(value) is list and len(value) > most:
            raise ValueError(f"{words}, not {len(value)}")


def check_messages(messages: tuple[Message, ...]) -> None:
    """Raises ValueError for too many messages, or a role that is too long."""
    check_lengths({"messages": list(messages)})
    for role in {message.role for message in messages}:
        if not 0 < len(role) <= MAX_ROLE or not role.isprintable():
            raise ValueError(f"field 'messages': a role has 1 to {MAX_ROLE} characters, not {reprlib.repr(role)}")


def check_stops(stops: tuple[str, ...]) -> None:
    """Raises ValueError for too many stop strings, or one that is too long."""
    check_lengths({"stop": list(stops)})
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP:
        raise ValueError(f"a stop string may have {MAX_STOP} characters at most, not {longest}")


def _check_text(field: str, value: object) -> None:
    """A client may be called with anything: what comes over the wire has been checked for its type already."""
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} must be a string, not {type(value).__name__}")


def check_ttl(ttl: float | None) -> None:
    """Raises ValueError for a time to live that no context can have."""
    if ttl is not None and not 0.0 < ttl <= 1e9:
        raise ValueError(f"ttl must be a number of seconds above 0, not {ttl}")

"""Calls at the times of real chats of two people, as the package chitchat-dataset has them (MIT): gaps between turns.

Law: times and lengths are the chats'; that they all began on one day is made up, at the time of day when each began.

Each chat is a context. What its first speaker says is a prompt, what the other one answers is what the model generates.
Four characters are taken for a token. A chat that would have more than ``limit`` tokens ends there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from llmaas.errors import BadRequest
from llmaas.traces.call import TraceCall

_CHARACTERS = 4
"""Of a token."""
_OLDEST = timedelta(days=2)
"""A chat that people came back to after more than that is not followed further."""


def read_chats(lines: Iterable[str], *, chats: int, limit: int = 4096) -> list[TraceCall]:
    """The calls of the first ``chats`` chats, in order of time. Raises BadRequest with the number of a wrong line."""
    calls: list[TraceCall] = []
    for number, line in enumerate(lines, start=1):
        if number > chats:
            break
        try:
            calls += _calls(json.loads(line)["messages"], f"chat{number}", limit)
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"line {number} is not a chat: {error}") from error
    return sorted(calls, key=lambda call: call.t)


def _calls(messages: list[list[dict[str, Any]]], name: str, limit: int) -> Iterator[TraceCall]:
    said = [message for turn in messages for message in turn]
    turns = [(sender, list(group)) for sender, group in groupby(said, key=lambda message: str(message["sender"]))]
    if not turns:
        return
    first, begin = turns[0][0], _time(turns[0][1][0])
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    tokens = 0
    for i, (sender, group) in enumerate(turns):
        if sender != first:
            continue
        when = _time(group[-1])  # the model answers when all of it has been said
        prompt = _tokens(group)
        generate = _tokens(turns[i + 1][1]) if i + 1 < len(turns) else 0
        tokens += prompt + generate
        if tokens > limit or when - begin > _OLDEST:
            return
        yield TraceCall((when - midnight).total_seconds(), "messenger", name, prompt, generate)


def _tokens(group: list[dict[str, Any]]) -> int:
    return max(1, sum(len(str(message["text"])) for message in group) // _CHARACTERS)


def _time(message: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(str(message["timestamp"]).replace("Z", "+00:00"))

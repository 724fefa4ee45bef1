"""A trace with text: conversations of apps, called in one of the patterns of ``switching``.

Law: the texts are the conversations'; when and in which order they go on is made up, and the seed decides it.

A conversation is a line of JSON: ``app``, ``id``, perhaps ``system``, and ``turns`` with ``role`` and ``content``. The
first call of a context has all of it but the last user turns, and generates nothing. Each later one adds the next of
those turns; after the last comes the first again. ``tokens_smollm2``, or another field that begins with ``tokens_``,
is taken for the tokens of the whole; without one, a token is four characters.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.traces import phone
from llmaas.traces.call import TraceCall
from llmaas.traces.growth import ANSWER
from llmaas.traces.switching import GAP_S, called

LAST_TURNS = 4
"""User turns of a conversation, at most, that calls add one by one; at least one is part of what it begins with."""
_CHARACTERS = 4.0
"""Of a token."""


@frozen
class ConversationText:
    app: str
    name: str
    begin: str
    """What the context's first call says."""
    turns: tuple[str, ...]
    """What the following calls say, one each."""
    characters: float = _CHARACTERS
    """Of a token, on the average."""

    def tokens(self, text: str) -> int:
        return max(1, round(len(text) / self.characters))


def read_conversations(lines: Iterable[str]) -> list[ConversationText]:
    """Raises BadRequest with the number of a wrong line."""
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_conversation(json.loads(line)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"line {number} is not a conversation: {error}") from error
    return found


def make(
    conversations: Sequence[ConversationText], pattern: str, calls: int, *, limit: int = 8192, seed: int = 1
) -> Iterator[TraceCall]:
    """All contexts begin, at second 0; then ``calls`` calls follow. Contexts that would have more than ``limit`` tokens
    are not called any more: the pattern, one of ``switching`` or "phone", goes on with the others.
    """
    rng = random.Random(f"conversations {pattern} {len(conversations)} {seed}")
    lengths = []
    for each in conversations:
        prompt = each.tokens(each.begin)
        if prompt > limit:
            raise BadRequest(f"{each.name} begins with {prompt} tokens, more than {limit}")
        lengths.append(prompt)
        yield TraceCall(0.0, each.app, each.name, prompt, 0, text=each.begin)
    growth = [sum(map(each.tokens, each.turns)) / len(each.turns) for each in conversations]
    turns = [itertools.cycle(each.turns) for each in conversations]
    n, t = len(conversations), 0.0
    order = _as_on_a_phone(n, seed) if pattern == "phone" else called(pattern, n, rng, growth)
    tried = 0
    while calls and tried < 1000 * len(conversations):
        i, tried = next(order), tried + 1
        text = next(turns[i])
        prompt = conversations[i].tokens(text)
        if lengths[i] + prompt + ANSWER > limit:
            continue
        lengths[i] += prompt + ANSWER
        t += rng.expovariate(1 / GAP_S)
        calls, tried = calls - 1, 0
        yield TraceCall(round(t, 2), conversations[i].app, conversations[i].name, prompt, ANSWER, text=text)


def _as_on_a_phone(n: int, seed: int) -> Iterator[int]:
    """Which of ``n`` contexts comes next when they are those of a phone's apps, in the order of their first calls."""
    numbers: dict[str, int] = {}
    for call in phone.make(seed, hours=math.inf):
        yield numbers.setdefault(call.context.partition(".")[0], len(numbers)) % n


def _conversation(row: dict[str, Any]) -> ConversationText:
    turns = [(str(turn["role"]), str(turn["content"])) for turn in row["turns"]]
    users = [i for i, (role, _) in enumerate(turns) if role == "user"]
    if not users:
        raise ValueError("it has no user turn")
    later = users[1:][-LAST_TURNS:] or users[-1:]
    said = [_said(role, content) for role, content in turns]
    system = str(row.get("system") or "")
    begin = "".join([_said("system", system) if system else "", *said[: later[0] if later[0] else 1]])
    tokens = next((int(value) for key, value in row.items() if key.startswith("tokens_")), 0)
    whole = len("".join(said)) + len(system)
    answer = "Assistant:"
    return ConversationText(
        app=str(row["app"]),
        name=str(row["id"]),
        begin=begin,
        turns=tuple(f"\n{said[i]}{answer}" for i in later),
        characters=whole / tokens if tokens else _CHARACTERS,
    )


def _said(role: str, content: str) -> str:
    return f"{role.capitalize()}: {content}\n"

"""Conversations for machines without real ones: a user asks about pieces of the Python manual.

Law: the random source decides all; no two conversations begin alike.
"""

from __future__ import annotations

import random
from pydoc_data.topics import topics

from llmaas.traces.conversations import ConversationText

_CHARACTERS = 4
"""Of a token."""
_TURNS, _TURN = 4, (60, 240)
"""How many turns follow the beginning, and characters of one, at least and at most."""


def made(n: int, limit: int, seed: int) -> list[ConversationText]:
    """``n`` conversations that begin with an eighth to five eighths of ``limit`` tokens."""
    rng = random.Random(f"made {n} {limit} {seed}")
    text = "\n".join(topics[name] for name in sorted(topics))

    def piece(characters: int) -> str:
        begin = rng.randrange(len(text) - characters)
        return text[begin : begin + characters]

    found = []
    for i in range(n):
        begin = piece(_CHARACTERS * rng.randint(limit // 8, limit * 5 // 8))
        turns = tuple(f"\nUser: what does this say?\n{piece(rng.randint(*_TURN))}\nAssistant:" for _ in range(_TURNS))
        found.append(ConversationText(f"app{i}", f"c{i}", f"System: app {i}\n{begin}\n", turns))
    return found

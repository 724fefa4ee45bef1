"""The demo's conversations: what its eight apps have seen, and what their users say next.

Law: real text, committed with its licence; nothing is downloaded or made up.
"""

from __future__ import annotations

import json
from importlib import resources

from llmaas.frozen import frozen
from llmaas.records import Message


@frozen
class Conversation:
    """One app's conversation; ``turns`` alternate, and the user begins."""

    app: str
    system: str
    turns: tuple[Message, ...]

    def history(self, n: int) -> tuple[Message, ...]:
        """The system message and the first ``n`` turns."""
        return (Message("system", self.system), *self.turns[:n])

    def questions(self, n: int) -> tuple[Message, ...]:
        """What the user says after the first ``n`` turns."""
        return tuple(turn for turn in self.turns[n:] if turn.role == "user")


def conversations() -> tuple[Conversation, ...]:
    """All eight (texts/ATTRIBUTION.md says where they are from)."""
    text = resources.files("llmaas.cli.demo").joinpath("texts", "conversations.json").read_text("utf-8")
    return tuple(
        Conversation(row["app"], row["system"], tuple(Message(t["role"], t["content"]) for t in row["turns"]))
        for row in json.loads(text)["conversations"]
    )

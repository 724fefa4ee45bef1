"""Conversations in a context, with a chat template and without a model: a token is a byte or a control token's name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import cast

from llmaas.calls import Turn
from llmaas.engine.base import Engine
from llmaas.engine.llama.chat import ChatTemplate
from llmaas.kvchunks.store.store import ContextRow, Span
from llmaas.records import AppId, ContextId, Message
from llmaas.service.live_context import LiveContext
from llmaas.service.pending_turn import PendingTurn
from llmaas.service.settle import settle, settled
from llmaas.service.turn_spans import turn_spans

FOLDER = Path(__file__).parents[1] / "data/chat_templates"
TEMPLATES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.jinja"))}
"""Templates by the family that they are like."""
BOS, EOS = "<s>", "</s>"
_LOOKS = r"<\|[\w:]+\|>|\[\|\w+\|\]|\[/?[A-Z_]+\]|<SPECIAL_\d+>|<extra_id_\d>|</?\w+_of_\w+>|<seed:\w+>"
_IN_TEMPLATES = {name for source in TEMPLATES.values() for name in re.findall(_LOOKS, source)}
NAMES = (*sorted(_IN_TEMPLATES | {BOS, EOS, "<|user|>", "<|assistant|>", "]~b]", "[e~[", "<sop>", "<|endoftext|>"}),)
"""Control tokens of the families, more or less; the text of a plain template has none."""


@cache
def _compiled(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, bos=BOS, eos=EOS)


LIMIT = 1 << 20
"""Tokens that a context may hold."""


class TextEngine:
    """The text side of an engine."""

    def __init__(self, source: str | None, names: Sequence[str] = NAMES) -> None:
        self.chat = _compiled(source)
        self.control_names = tuple(sorted(set(names)))
        self._ids = {name: 256 + i for i, name in enumerate(self.control_names)}
        self._known = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"\b\B")
        self.n_renderings = 0

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        self.n_renderings += 1
        return self.chat.render(messages, answer=answer)

    def tokenize(
        self, text: str, *, special: bool, bos: bool, after: int | None = None, limit: int | None = None
    ) -> list[int]:
        tokens: list[int] = []
        at = 0
        for found in self._known.finditer(text) if special else ():
            tokens += [*text[at : found.start()].encode(), self._ids[found.group()]]
            at = found.end()
        return tokens + list(text[at:].encode())

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def text(self, tokens: Sequence[int]) -> str:
        parts = (bytes([token]) if token < 256 else self.control_names[token - 256].encode() for token in tokens)
        return b"".join(parts).decode()


class Talk:
    """A conversation in a context."""

    def __init__(self, engine: TextEngine, *, keep_thoughts: bool = False) -> None:
        self.text_engine, self.engine = engine, cast(Engine, engine)
        row = ContextRow(ContextId("0" * 16), AppId("1000/test"), "x", "", "", 0.0, 0.0, 0)
        self.live = LiveContext(row, b"", usable=True)
        self.spans: list[Span] = []
        self.keep_thoughts = keep_thoughts
        self.n_unchanged: list[int] = []
        """For each time that the past was written anew, how many tokens stayed as they were."""

    def add(self, *messages: Message, answer: bool = False) -> None:
        turn = Turn(messages)
        found = None if self.keep_thoughts else settled(self.engine, self.live, turn, answer=answer, limit=LIMIT)
        if found is not None:
            pending = PendingTurn(self.live, turn)
            self.n_unchanged.append(settle(pending, self.spans, found))
            assert pending.shift is not None
            self.spans = list(pending.shift.kept)
        self._take(turn_spans(self.engine, self.live, turn, answer=answer, limit=LIMIT))

    def answer(self, text: str) -> None:
        tokens = self.engine.tokenize(text, special=False, bos=False)
        self._take([Span(tuple(tokens), "assistant", text, True)])

    def raw(self, prompt: str) -> None:
        self._take(turn_spans(self.engine, self.live, Turn(prompt=prompt), answer=False, limit=LIMIT))

    def _take(self, spans: Sequence[Span]) -> None:
        self.live.add_spans(spans)
        self.spans += spans

    @property
    def text(self) -> str:
        return self.text_engine.text(self.live.tokens)

    @property
    def whole(self) -> str:
        """What the template makes of all messages at once, ready for the answer."""
        return self.text_engine.chat.render(self.live.messages, answer=True)

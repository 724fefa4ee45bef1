"""The fake engine's text side: one token per byte, four special tokens, and ChatML as the chat template.

Law: pure functions; safe on any thread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmaas.engine.rules import check_token
from llmaas.engine.tools import TOOLS, read_tools, tools_text
from llmaas.errors import BadRequest, ContextTooLong
from llmaas.records import Message

BOS, EOS, IM_START, IM_END = 256, 257, 258, 259
N_VOCAB = 260
_SPECIAL = {"<|bos|>": BOS, "<|eos|>": EOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END}
CONTROL_NAMES = tuple(_SPECIAL)
MOST_BYTES = max(map(len, _SPECIAL))
"""Bytes of text that one token stands for at most."""
_SPECIAL_TEXT = re.compile("|".join(map(re.escape, _SPECIAL)))


def tokenize(text: str, *, special: bool, bos: bool, limit: int | None = None) -> list[int]:
    if limit is not None and len(text) > limit * MOST_BYTES:
        raise ContextTooLong(f"the text has more than {limit} tokens; at most {limit} fit")
    tokens = _tokens(text, special=special, bos=bos)
    if limit is not None and len(tokens) > limit:
        raise ContextTooLong(f"the text has more than {limit} tokens; at most {limit} fit")
    return tokens


def _tokens(text: str, *, special: bool, bos: bool) -> list[int]:
    tokens = [BOS] if bos else []
    at = 0
    for found in _SPECIAL_TEXT.finditer(text) if special else ():
        tokens += [*text[at : found.start()].encode("utf-8", "replace"), _SPECIAL[found.group()]]
        at = found.end()
    return tokens + list(text[at:].encode("utf-8", "replace"))


def piece(token: int) -> bytes:
    check_token(token, N_VOCAB)
    return bytes([token]) if token < 256 else b""


def is_end(token: int) -> bool:
    check_token(token, N_VOCAB)
    return token in (EOS, IM_END)


def render(messages: Sequence[Message], *, answer: bool) -> str:
    tools = read_tools(messages[0].content) if messages and messages[0].role == TOOLS else None
    if tools is not None:
        messages = messages[1:]
        messages = [Message("system", f"Tools: {tools_text(tools)}"), *messages]
    if any(message.role == TOOLS for message in messages):
        raise BadRequest("the tools come before all other messages, in one message")
    text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
    return text + "<|im_start|>assistant\n" if answer else text

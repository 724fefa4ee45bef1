"""How an answer ended, in the words of the APIs; and log probabilities in OpenAI's form.

Law: pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmaas.calls import FinishReason, Logprobs, TokenLogprob
from llmaas.http.chat_types import ChatLogprobs, TokenLogprobs, TopLogprob

_LEAST = -9999.0
"""What stands for minus infinity, which JSON lacks."""


def finish_of(reason: FinishReason, n_calls: int = 0) -> str:
    """OpenAI's ``finish_reason``."""
    if reason is FinishReason.STOP:
        return "tool_calls" if n_calls else "stop"
    return "length"


def logprobs_of(found: Iterable[Logprobs]) -> ChatLogprobs:
    return ChatLogprobs(
        [
            TokenLogprobs(each.text, finite(each.logprob), list(each.text.encode()), [_top(t) for t in each.top])
            for each in found
        ]
    )


def finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def _top(each: TokenLogprob) -> TopLogprob:
    return TopLogprob(each.text, finite(each.logprob), list(each.text.encode()))

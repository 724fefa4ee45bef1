"""The values of a call: what it asks for, how the answer is drawn, and what it gets back."""

from __future__ import annotations

from llmaas.calls.reply import (
    Done,
    FinishReason,
    Loading,
    Logprobs,
    Piece,
    Progress,
    Queued,
    SwitchReport,
    TokenLogprob,
)
from llmaas.calls.request import (
    DEFAULT_TERMS,
    MAX_KEY,
    MAX_LOGPROBS,
    ON_FULL,
    CallSpec,
    Generation,
    Priority,
    Terms,
    Turn,
)
from llmaas.calls.sampling import MAX_GRAMMAR, MAX_PENALTY_TOKENS, Sampling

__all__ = [
    "DEFAULT_TERMS",
    "MAX_GRAMMAR",
    "MAX_KEY",
    "MAX_LOGPROBS",
    "MAX_PENALTY_TOKENS",
    "ON_FULL",
    "CallSpec",
    "Done",
    "FinishReason",
    "Generation",
    "Loading",
    "Logprobs",
    "Piece",
    "Priority",
    "Progress",
    "Queued",
    "Sampling",
    "SwitchReport",
    "Terms",
    "TokenLogprob",
    "Turn",
]

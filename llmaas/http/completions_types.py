"""The request and the responses of ``/v1/completions``.

Law: values only, as the wire has them.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from llmaas.http.openai_types import Served, TextRequest, Usage


class CompletionRequest(TextRequest, kw_only=True):
    prompt: str | list[Any] | None = None
    best_of: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, one item for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """The whole response, and each chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: str = "text_completion"
    system_fingerprint: str | None = None
    usage: Usage | UnsetType | None = UNSET
    llmaas: Served | UnsetType = UNSET

"""Fields that several of OpenAI's endpoints share: messages, usage, log probabilities, errors.

Law: values only, as the wire has them. Fields that are not listed are accepted and ignored, as compatible servers do.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llmaas.calls import Done, Loading, Progress, Queued
from llmaas.http.answers import n_cached, n_prompt
from llmaas.http.extensions import Extensions

Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class ContentPart(msgspec.Struct):
    """A part of a message's content; only text is known."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str
    """JSON."""


class ToolCall(msgspec.Struct):
    """A call that the model makes."""

    id: str
    function: CalledFunction
    type: str = "function"


class PromptDetails(msgspec.Struct):
    cached_tokens: int = 0


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_of(done: list[Done]) -> Usage:
    """The prompt counts once, however many answers there are."""
    prompt, cached = n_prompt(done[0]), max(map(n_cached, done))
    generated = sum(each.n_generated for each in done)
    return Usage(prompt, generated, prompt + generated, PromptDetails(cached), CompletionDetails())


class Served(msgspec.Struct):
    """What llmaas says of an answer besides: the field ``llmaas`` of a response."""

    context: str
    n_tokens: int
    """Tokens in the context now."""
    cells: int
    pool: int
    disk: int
    recomputed: int
    """Tokens by where they were when the answer needed them."""
    switch_ms: float
    queue_ms: float
    ttft_ms: float
    decode_tps: float


class Waiting(msgspec.Struct):
    """The same field of a chunk before the answer: how long the model will take to be in memory."""

    loading: Loading


class InQueue(msgspec.Struct):
    """The same field of a chunk before the answer: how many requests go before, and how long they will take."""

    queued: Queued


class Reading(msgspec.Struct):
    """The same field of a chunk before the answer: how far reading the prompt has come."""

    progress: Progress


Before = Waiting | InQueue | Reading
"""What chunks tell that come before the answer."""


def served_of(done: Done) -> Served:
    s = done.switch
    times = (round(x, 3) for x in (s.switch_ms, done.queue_ms, done.ttft_ms, done.decode_tps))
    return Served(done.context, done.n_tokens, s.cells, s.pool, s.disk, s.recomputed, *times)


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class TextRequest(msgspec.Struct, kw_only=True):
    """What requests for a chat completion and for a completion share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    llmaas: Extensions | None = None
    user: str | None = None


class SchemaFormat(msgspec.Struct):
    """A JSON schema by its name."""

    name: str | None = None
    schema: msgspec.Raw | UnsetType = UNSET
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: SchemaFormat | None = None

"""The request and the response of ``/v1/responses``.

Law: values only, as the wire has them.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from llmaas.http.extensions import Extensions
from llmaas.http.openai_types import ContentPart, Served, Share, Temperature


class InputItem(msgspec.Struct):
    """A message, a call of a function, or its output."""

    type: str = "message"
    role: str | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class ResponseTool(msgspec.Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: msgspec.Raw | UnsetType = UNSET


class ResponseToolChoice(msgspec.Struct):
    type: str
    name: str | None = None


class TextFormat(msgspec.Struct):
    type: str
    schema: msgspec.Raw | UnsetType = UNSET


class TextSettings(msgspec.Struct):
    format: TextFormat | None = None


class ResponseRequest(msgspec.Struct, kw_only=True):
    input: str | list[InputItem]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    truncation: str | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: Any = None
    user: str | None = None
    llmaas: Extensions | None = None


class OutputText(msgspec.Struct):
    text: str
    type: str = "output_text"
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(msgspec.Struct):
    id: str
    content: list[OutputText]
    status: str = "in_progress"
    type: str = "message"
    role: str = "assistant"


class OutputCall(msgspec.Struct):
    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: str = "in_progress"
    type: str = "function_call"


class InputDetails(msgspec.Struct):
    cached_tokens: int = 0


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class ResponseObject(msgspec.Struct, kw_only=True):
    id: str
    created_at: float
    model: str
    status: str = "in_progress"
    output: list[Any] = []
    object: str = "response"
    error: Any = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: Any = None
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: Any = None
    tool_choice: Any = "auto"
    tools: list[Any] = []
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    llmaas: Served | UnsetType = UNSET

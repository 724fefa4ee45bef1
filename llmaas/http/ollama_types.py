"""Requests and responses of Ollama's API.

Law: values only, as the wire has them. Fields that are not listed are accepted and ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from llmaas.http.chat_types import ChatTool
from llmaas.http.extensions import Extensions
from llmaas.http.openai_types import Served


class OllamaFunction(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | None = None


class OllamaCall(msgspec.Struct):
    function: OllamaFunction


class OllamaMessage(msgspec.Struct):
    role: str
    content: str | None = None
    images: list[Any] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None


class OllamaOptions(msgspec.Struct):
    """How the answer is drawn; others (``num_ctx``, ``num_gpu``, ...) are for another engine, and ignored."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    num_predict: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class OllamaRequest(msgspec.Struct, kw_only=True):
    """What requests for answers share."""

    model: str | None = None
    stream: bool | None = None
    format: msgspec.Raw | UnsetType = UNSET
    options: OllamaOptions | None = None
    keep_alive: str | float | None = None
    llmaas: Extensions | None = None


class OllamaChatRequest(OllamaRequest, kw_only=True):
    messages: list[OllamaMessage] | None = None
    tools: list[ChatTool] | None = None


class OllamaGenerateRequest(OllamaRequest, kw_only=True):
    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class OllamaName(msgspec.Struct):
    """A request about one model."""

    model: str | None = None
    name: str | None = None


class OllamaAnswer(msgspec.Struct):
    """The message of a chat."""

    content: str = ""
    role: str = "assistant"
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class OllamaReply(msgspec.Struct, kw_only=True):
    """A whole response, or a line of a stream: ``message`` in a chat, else ``response``. Durations are nanoseconds."""

    model: str
    created_at: str
    message: OllamaAnswer | UnsetType = UNSET
    response: str | UnsetType = UNSET
    done: bool = False
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    llmaas: Served | UnsetType = UNSET


class OllamaDetails(msgspec.Struct):
    parent_model: str = ""
    format: str = "gguf"
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaModel(msgspec.Struct, kw_only=True):
    name: str
    model: str
    modified_at: str | UnsetType = UNSET
    expires_at: str | UnsetType = UNSET
    size: int = 0
    size_vram: int | UnsetType = UNSET
    digest: str
    details: OllamaDetails
    context_length: int | UnsetType = UNSET


class OllamaModels(msgspec.Struct):
    models: list[OllamaModel]


class OllamaShown(msgspec.Struct):
    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersion(msgspec.Struct):
    version: str
    llmaas: str

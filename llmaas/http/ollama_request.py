"""What a request of Ollama's API asks of the daemon.

Law: pure. Options that mean the same here are kept to; what cannot be done is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llmaas.calls import MAX_PENALTY_TOKENS
from llmaas.http.ask import Ask, on_full_of, sampling_of, stops_of, tokens_of
from llmaas.http.chat_request import role_of, with_calls
from llmaas.http.chat_types import ChatTool
from llmaas.http.errors import HttpError
from llmaas.http.extensions import with_headers
from llmaas.http.facts import ServedModel
from llmaas.http.ollama_types import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaOptions,
    OllamaRequest,
)
from llmaas.http.tool_forms import ToolForm
from llmaas.http.toolbox import OfferedTool, Toolbox
from llmaas.records import Message

_NAMES = {"penalty_last_n": "repeat_last_n", "json_schema": "format"}
_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "repeat_penalty", "presence_penalty", "frequency_penalty")


def ollama_message(message: OllamaMessage, where: str) -> Message:
    """Raises HttpError for what is no text."""
    if message.images:
        raise HttpError(400, "images are not served: this server takes text only", param=f"{where}.images")
    role, text = role_of(message.role, f"{where}.role"), message.content or ""
    if message.tool_calls:
        called = [call.function for call in message.tool_calls]
        calls = [(each.name, json.dumps(each.arguments or {}, ensure_ascii=False)) for each in called]
        text = with_calls(text, ToolForm.HERMES, calls)
    return Message(role, text)


def format_of(given: msgspec.Raw | msgspec.UnsetType) -> str | None:
    """The JSON schema that the answer keeps to; None if it is text. Raises HttpError."""
    text = "" if isinstance(given, msgspec.UnsetType) else bytes(given).decode().strip()
    if text in ("", "null", '""'):
        return None
    if text == '"json"':
        return '{"type":"object"}'
    if not text.startswith("{"):
        raise HttpError(400, 'it is "json" or a JSON schema', param="format")
    return text


def ollama_toolbox(tools: Sequence[ChatTool] | None) -> Toolbox:
    """Raises HttpError."""
    offered = []
    for i, tool in enumerate(tools or ()):
        function = tool.function
        if function is None:
            raise HttpError(400, "a tool is a function", param=f"tools[{i}]")
        schema = "" if isinstance(function.parameters, msgspec.UnsetType) else bytes(function.parameters).decode()
        offered.append(OfferedTool(function.name, function.description or "", "" if schema == "null" else schema))
    return Toolbox.of(offered, None)


def chat_ask_of_ollama(
    request: OllamaChatRequest, headers: Mapping[str, str], facts: ServedModel, toolbox: Toolbox
) -> Ask:
    messages = [ollama_message(each, f"messages[{i}]") for i, each in enumerate(request.messages or ())]
    told, calls = toolbox.told(messages, facts.takes_tools), toolbox.marked(facts)
    return _ask(request, headers, facts, messages=told, calls=calls)


def generate_ask_of_ollama(request: OllamaGenerateRequest, headers: Mapping[str, str], facts: ServedModel) -> Ask:
    """Raises HttpError."""
    if request.suffix:
        raise HttpError(400, "suffix is not supported: the model goes on at the end of the prompt", param="suffix")
    if request.images:
        raise HttpError(400, "images are not served: this server takes text only", param="images")
    if request.raw:
        return _ask(request, headers, facts, prompt=request.prompt, special=True)
    system = [Message("system", request.system)] if request.system else []
    return _ask(request, headers, facts, messages=(*system, Message("user", request.prompt or "")))


def _ask(request: OllamaRequest, headers: Mapping[str, str], facts: ServedModel, **what: Any) -> Ask:
    options = request.options or OllamaOptions()
    extra = with_headers(request.llmaas, headers)
    n_tokens = options.num_predict if options.num_predict and options.num_predict > 0 else None
    last = options.repeat_last_n
    given = {name: getattr(options, name) for name in _SAME}
    given |= {
        "penalty_last_n": MAX_PENALTY_TOKENS if last is not None and last < 0 else last,
        "json_schema": format_of(request.format),
    }
    return Ask(
        context=extra.context,
        max_tokens=tokens_of(n_tokens, facts, "num_predict"),
        sampling=sampling_of(facts, extra, given, prefix="options.", names=_NAMES),
        stop=tuple(each for each in stops_of_ollama(options.stop)),
        terms=extra.terms(facts.adapter_of(request.model)),
        on_full=on_full_of(extra),
        **what,
    )


def stops_of_ollama(stop: str | list[str] | None) -> tuple[str, ...]:
    """Empty strings are left out, as Ollama does."""
    given = [stop] if isinstance(stop, str) else stop or []
    return stops_of([each for each in given if each], "options.stop")

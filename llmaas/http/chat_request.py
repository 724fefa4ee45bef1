"""What a request for a chat completion asks of the daemon.

Law: pure. What cannot be done is refused with the field's name, never left out without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from llmaas.calls import MAX_LOGPROBS
from llmaas.http.ask import MOST_ANSWERS, Ask, on_full_of, sampling_of, stops_of, tokens_of
from llmaas.http.chat_types import ChatMessage, ChatRequest, NamedTool
from llmaas.http.errors import HttpError
from llmaas.http.extensions import with_headers
from llmaas.http.facts import ServedModel
from llmaas.http.openai_types import ContentPart, ResponseFormat
from llmaas.http.tool_forms import ToolForm, form_of, written
from llmaas.http.toolbox import OfferedTool, Toolbox
from llmaas.records import Message

_ROLES = {"developer": "system", "function": "tool"}
_KNOWN_ROLES = ("system", "user", "assistant", "tool")
_TEXTS = ("text", "input_text", "output_text", "refusal")


def text_of(content: str | Sequence[ContentPart] | None, where: str) -> str:
    """The text of a message's content. Raises HttpError for what is no text."""
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content or ()):
        if part.type not in _TEXTS:
            what = f"content of the type {part.type[:40]!r} is not served: this server takes text only"
            raise HttpError(400, what, param=f"{where}[{i}].type")
        texts.append((part.refusal if part.type == "refusal" else part.text) or "")
    return "".join(texts)


def role_of(role: str, where: str) -> str:
    """The role as chat templates know it. Raises HttpError for another."""
    known = _ROLES.get(role, role)
    if known not in _KNOWN_ROLES:
        raise HttpError(400, f"a role is one of {', '.join(_KNOWN_ROLES)}, not {role[:40]!r}", param=where)
    return known


def chat_message(message: ChatMessage, where: str) -> Message:
    """A message as chat templates take it. An assistant's calls are written as the model wrote them."""
    role = role_of(message.role, f"{where}.role")
    if (message.content is None and role in ("user", "system")) or (message.content is None and not message.tool_calls):
        raise HttpError(400, f"a message of the role {role!r} needs content", param=f"{where}.content")
    text = text_of(message.content, f"{where}.content")
    if message.tool_calls:
        calls = [(call.function.name, call.function.arguments or "{}") for call in message.tool_calls]
        text = with_calls(text, form_of(message.tool_calls[0].id), calls)
    return Message(role, text)


def with_calls(text: str, form: ToolForm, calls: Sequence[tuple[str, str]]) -> str:
    """An assistant's text with the calls that follow it."""
    between = "\n" if text and form is ToolForm.HERMES and not text.endswith("\n") else ""
    return f"{text}{between}{written(form, calls)}"


def toolbox_of(request: ChatRequest) -> Toolbox:
    """Raises HttpError."""
    tools = []
    for i, tool in enumerate(request.tools or ()):
        if tool.type != "function" or tool.function is None:
            raise HttpError(400, f"a tool is a function, not {tool.type[:40]!r}", param=f"tools[{i}]")
        parameters = tool.function.parameters
        schema = "" if isinstance(parameters, msgspec.UnsetType) else bytes(parameters).decode()
        tools.append(
            OfferedTool(tool.function.name, tool.function.description or "", "" if schema == "null" else schema)
        )
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        return Toolbox.of(tools, choice.function.name, named=True)
    return Toolbox.of(tools, choice)


def schema_of(given: ResponseFormat | None, param: str = "response_format") -> str | None:
    """The JSON schema that the answer keeps to; None if it is text. Raises HttpError."""
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return '{"type":"object"}'
    if given.type != "json_schema":
        raise HttpError(400, "the type is one of text, json_object, json_schema", param=f"{param}.type")
    if given.json_schema is None or isinstance(given.json_schema.schema, msgspec.UnsetType):
        raise HttpError(400, "a schema is missing", param=f"{param}.json_schema.schema")
    return bytes(given.json_schema.schema).decode()


def chat_ask(request: ChatRequest, headers: Mapping[str, str], facts: ServedModel, toolbox: Toolbox) -> Ask:
    """Raises HttpError."""
    extra = with_headers(request.llmaas, headers)
    schema = schema_of(request.response_format)
    if schema is not None and extra.grammar is not None:
        raise HttpError(400, "give response_format or a grammar, not both", param="llmaas.grammar")
    call_schema = toolbox.constraint()
    if call_schema is not None and (schema or extra.grammar):
        raise HttpError(
            400, "an answer that must call a tool keeps to the tool's schema, and to no other", param="tool_choice"
        )
    limit = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    given = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "json_schema": schema or call_schema,
        "logit_bias": biases_of(request.logit_bias),
    }
    messages = [chat_message(each, f"messages[{i}]") for i, each in enumerate(request.messages)]
    return Ask(
        messages=toolbox.told(messages, facts.takes_tools),
        context=extra.context,
        max_tokens=tokens_of(getattr(request, limit), facts, limit),
        sampling=sampling_of(facts, extra, given, names={"json_schema": "response_format" if schema else "tools"}),
        stop=stops_of(request.stop),
        terms=extra.terms(facts.adapter_of(request.model)),
        logprobs=_logprobs(request),
        on_full=on_full_of(extra),
        calls=toolbox.marked(facts),
        progress=bool(request.stream and extra.progress),
    )


def _logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs is None:
        return 0 if request.logprobs else None
    if not request.logprobs:
        raise HttpError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if not 0 <= request.top_logprobs <= MAX_LOGPROBS:
        raise HttpError(400, f"top_logprobs goes from 0 to {MAX_LOGPROBS}", param="top_logprobs")
    return request.top_logprobs


def biases_of(given: Mapping[str, float] | None) -> tuple[tuple[int, float], ...] | None:
    """Pairs of a token's id and what is added to its logit. Raises HttpError for a key that is no id."""
    if not given:
        return None
    wrong = next((key for key in given if not re.fullmatch("[0-9]{1,9}", key)), None)
    if wrong is not None:  # "" is wrong, too
        raise HttpError(400, f"{wrong[:40]!r} is no id of a token", param="logit_bias")
    return tuple((int(key), bias) for key, bias in given.items())


def n_answers(n: int | None) -> int:
    """How many answers are wanted. Raises HttpError."""
    if n is not None and not 1 <= n <= MOST_ANSWERS:
        raise HttpError(400, f"n goes from 1 to {MOST_ANSWERS}, not {n}", param="n")
    return n or 1

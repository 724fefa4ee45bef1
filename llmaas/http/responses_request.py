"""What a request for a response asks of the daemon.

Law: pure. Input items become messages; calls of one answer that stand in a row become one message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from llmaas.http.ask import Ask, on_full_of, sampling_of, tokens_of
from llmaas.http.chat_request import role_of, text_of, with_calls
from llmaas.http.errors import HttpError
from llmaas.http.extensions import with_headers
from llmaas.http.facts import ServedModel
from llmaas.http.responses_types import InputItem, ResponseRequest, ResponseToolChoice, TextFormat
from llmaas.http.tool_forms import form_of
from llmaas.http.toolbox import OfferedTool, Toolbox
from llmaas.records import Message

_IGNORED = ("reasoning", "item_reference")


def input_messages(given: str | Sequence[InputItem]) -> list[Message]:
    """The messages that the input adds. Raises HttpError."""
    if isinstance(given, str):
        return [Message("user", given)]
    found: list[Message] = []
    calls: list[tuple[str, InputItem]] = []
    for i, item in enumerate(given):
        if item.type == "function_call":
            if not item.name or not item.call_id:
                raise HttpError(400, "a call has a name and a call_id", param=f"input[{i}]")
            calls.append((item.name, item))
            continue
        _write_calls(found, calls)
        if item.type == "message":
            role = role_of(item.role or "", f"input[{i}].role")
            found.append(Message(role, text_of(item.content, f"input[{i}].content")))
        elif item.type == "function_call_output":
            found.append(Message("tool", text_of(item.output, f"input[{i}].output")))
        elif item.type not in _IGNORED:
            raise HttpError(400, f"input of the type {item.type[:40]!r} is not served", param=f"input[{i}].type")
    _write_calls(found, calls)
    if not found:
        raise HttpError(400, "the input is empty", param="input")
    return found


def _write_calls(found: list[Message], calls: list[tuple[str, InputItem]]) -> None:
    """Calls belong to the assistant's message before them, if there is one."""
    if not calls:
        return
    text = found.pop().content if found and found[-1].role == "assistant" else ""
    written = [(name, item.arguments or "{}") for name, item in calls]
    found.append(Message("assistant", with_calls(text, form_of(calls[0][1].call_id or ""), written)))
    calls.clear()


def response_toolbox(request: ResponseRequest) -> Toolbox:
    """Raises HttpError."""
    tools = []
    for i, tool in enumerate(request.tools or ()):
        if tool.type != "function" or not tool.name:
            raise HttpError(400, f"a tool is a function with a name, not {tool.type[:40]!r}", param=f"tools[{i}]")
        schema = "" if isinstance(tool.parameters, msgspec.UnsetType) else bytes(tool.parameters).decode()
        tools.append(OfferedTool(tool.name, tool.description or "", "" if schema == "null" else schema))
    choice = request.tool_choice
    if isinstance(choice, ResponseToolChoice):
        return Toolbox.of(tools, choice.name or choice.type, named=True)
    return Toolbox.of(tools, choice)


def _schema_of(given: TextFormat | None) -> str | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return '{"type":"object"}'
    if given.type != "json_schema":
        raise HttpError(400, "the type is one of text, json_object, json_schema", param="text.format.type")
    if isinstance(given.schema, msgspec.UnsetType):
        raise HttpError(400, "a schema is missing", param="text.format.schema")
    return bytes(given.schema).decode()


def response_ask(
    request: ResponseRequest,
    headers: Mapping[str, str],
    facts: ServedModel,
    toolbox: Toolbox,
    history: Sequence[Message],
) -> Ask:
    """``history``: the conversation that the request goes on with. Raises HttpError."""
    extra = with_headers(request.llmaas, headers)
    if request.background:
        raise HttpError(400, "background is not supported: the response comes when it is there", param="background")
    schema, call_schema = _schema_of(request.text.format if request.text else None), toolbox.constraint()
    if schema is not None and call_schema is not None:
        raise HttpError(400, "an answer that must call a tool keeps to its schema alone", param="tool_choice")
    system = [Message("system", request.instructions)] if request.instructions else []
    messages = [*system, *history, *input_messages(request.input)]
    given = {"temperature": request.temperature, "top_p": request.top_p, "json_schema": schema or call_schema}
    on_full = "shift" if request.truncation == "auto" and extra.on_full is None else on_full_of(extra)
    return Ask(
        messages=toolbox.told(messages, facts.takes_tools),
        context=extra.context,
        max_tokens=tokens_of(request.max_output_tokens, facts, "max_output_tokens"),
        sampling=sampling_of(facts, extra, given, names={"json_schema": "text.format.schema" if schema else "tools"}),
        terms=extra.terms(facts.adapter_of(request.model)),
        on_full=on_full,
        calls=toolbox.marked(facts),
    )

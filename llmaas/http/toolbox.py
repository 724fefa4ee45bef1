"""The tools of a request: how the model is told of them, and what keeps its answer to calling one.

Law: pure. A model whose template has a place for tools gets them there; another gets a description in the system
message, in the words that Hermes models were trained with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from llmaas.frozen import frozen
from llmaas.http.deltas import PlainReader, Reader
from llmaas.http.errors import HttpError
from llmaas.http.facts import ServedModel
from llmaas.http.tool_forms import HERMES, HERMES_END, MISTRAL
from llmaas.http.tool_reader import ToolReader
from llmaas.records import Message

MOST_TOOLS = 128
TOOLS_ROLE = "tools"
"""Role of the daemon's first message that holds the tools, as JSON."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_BEHIND = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


@frozen
class OfferedTool:
    """A function that the model may call; ``parameters`` is the text of a JSON schema, "" if it takes anything."""

    name: str
    description: str
    parameters: str

    def as_json(self) -> bytes:
        """In OpenAI's form."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        if self.parameters:
            function["parameters"] = msgspec.Raw(self.parameters.encode())
        return msgspec.json.encode({"type": "function", "function": function})


@frozen
class MarkedCalls:
    """JSON by ``schema`` stands between two marks; the rest of the answer is text."""

    schema: str
    marks: tuple[str, str]


@frozen
class Toolbox:
    """The tools that are offered, and the choice: "auto", "none", "required", or the name of one."""

    tools: tuple[OfferedTool, ...] = ()
    choice: str = "auto"
    named: bool = False

    @staticmethod
    def of(
        tools: Sequence[OfferedTool], choice: str | None, *, named: bool = False, param: str = "tool_choice"
    ) -> Toolbox:
        """Raises HttpError for tools and choices that do not go together."""
        if len(tools) > MOST_TOOLS:
            raise HttpError(400, f"there may be {MOST_TOOLS} tools, not {len(tools)}", param="tools")
        names = [tool.name for tool in tools]
        for i, name in enumerate(names):
            if not _NAME.fullmatch(name):
                raise HttpError(400, "a tool's name has 1 to 64 characters of A-Z a-z 0-9 _ . -", param=f"tools[{i}]")
            if name in names[:i]:
                raise HttpError(400, f"two tools are called {name!r}", param=f"tools[{i}]")
        choice = choice or ("auto" if tools else "none")
        if named and choice not in names:
            raise HttpError(400, f"there is no tool {choice[:64]!r} to be chosen", param=param)
        if not named and choice not in ("auto", "none", "required"):
            raise HttpError(400, "it is one of none, auto, required, or names a function", param=param)
        if choice == "required" and not tools:
            raise HttpError(400, "a call is required, but there are no tools", param=param)
        return Toolbox(tuple(tools), choice, named)

    def reader(self) -> Reader:
        """What reads an answer."""
        if not self.tools or (self.choice == "none" and not self.named):
            return PlainReader()
        return ToolReader({tool.name for tool in self.tools})

    def told(self, messages: Sequence[Message], takes_tools: bool) -> tuple[Message, ...]:
        """The conversation, with the tools in it; ``takes_tools``: the model's template has a place for them."""
        if takes_tools:
            if not self.tools:
                return tuple(messages)
            listed = b"[" + b", ".join(tool.as_json() for tool in self.tools) + b"]"
            return (Message(TOOLS_ROLE, listed.decode()), *messages)
        messages = _results_by_user(messages)
        if not self.tools:
            return tuple(messages)
        text = _BEFORE + b"\n".join(tool.as_json() for tool in self.tools).decode() + _BEHIND
        if messages and messages[0].role == "system":
            return (Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:])
        return (Message("system", text), *messages)

    def constraint(self) -> str | None:
        """The JSON schema that makes the answer a call; None if it may be text."""
        chosen = [tool for tool in self.tools if not self.named or tool.name == self.choice]
        if not self.tools or (not self.named and self.choice != "required"):
            return None
        return msgspec.json.encode(_calls_schema(chosen, "")).decode()

    def marked(self, facts: ServedModel) -> MarkedCalls | None:
        """What keeps calls to their schemas in an answer that may be text; None where nothing does."""
        if not self.tools or self.named or self.choice != "auto":
            return None
        mark = facts.tool_mark if facts.takes_tools else HERMES  # as it is told
        if mark == HERMES:
            return MarkedCalls(msgspec.json.encode(_calls_schema(self.tools, "")).decode(), (HERMES, HERMES_END))
        if mark == MISTRAL:
            calls = {"type": "array", "items": _calls_schema(self.tools, "/items"), "minItems": 1}
            return MarkedCalls(msgspec.json.encode(calls).decode(), (MISTRAL, ""))
        return None


def before_tools(system: Message) -> str:
    """What a system message says before it tells of tools."""
    if system.content.startswith(_BEFORE):
        return ""
    return system.content.partition(f"\n\n{_BEFORE}")[0]


def _calls_schema(tools: Sequence[OfferedTool], place: str) -> dict[str, Any]:
    """A call of one of the tools; ``place`` is where the schema will stand."""
    if len(tools) == 1:
        return _call_schema(tools[0], place)
    return {"anyOf": [_call_schema(tool, f"{place}/anyOf/{i}") for i, tool in enumerate(tools)]}


def _call_schema(tool: OfferedTool, place: str) -> dict[str, Any]:
    parameters: Any = {"type": "object"}
    if tool.parameters:
        try:
            parameters = msgspec.json.decode(tool.parameters)
        except (msgspec.DecodeError, RecursionError):
            raise HttpError(400, f"the parameters of {tool.name!r} are no JSON schema", param="tools") from None
    if isinstance(parameters, dict):
        parameters = {"type": "object", **_moved(parameters, f"{place}/properties/arguments", 0)}
        parameters.pop("$schema", None)
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str, depth: int) -> Any:
    """A schema whose references to itself lead to where it is now."""
    if depth > 100:
        raise HttpError(400, "the parameters of a tool nest too deeply", param="tools")
    if isinstance(schema, list):
        return [_moved(each, place, depth + 1) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place, depth + 1) for key, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        moved["$ref"] = f"#{place}{target[1:]}"
    return moved


def _results_by_user(messages: Sequence[Message]) -> list[Message]:
    """Results of tools as a user's message, for templates that know no other role; those in a row in one message."""
    found: list[Message] = []
    for i, message in enumerate(messages):
        if message.role != "tool":
            found.append(message)
            continue
        text = f"<tool_response>\n{message.content}\n</tool_response>"
        if i and messages[i - 1].role == "tool":
            text = f"{found.pop().content}\n{text}"
        found.append(Message("user", text))
    return found

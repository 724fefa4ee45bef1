"""The tools that a model may call: a message of the role ``tools``, whose content is a JSON list of them.

Law: pure. The form is that of OpenAI's API: ``[{"type": "function", "function": {"name": ..., "parameters": {...}}}]``.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from llmaas.errors import BadRequest

TOOLS = "tools"
"""The role. Such a message stands first, and has no text of its own: the chat template writes the tools where the model
looks for them."""
MAX_TOOLS = 1024
CALL_MARKS = ("<tool_call>", "[TOOL_CALLS]")
"""What Hermes and Qwen, and Mistral models write before a call."""

_FORM = 'The content is a JSON list: [{"type": "function", "function": {"name": ..., "parameters": {...}}}].'


def read_tools(content: str) -> list[dict[str, Any]]:
    """The tools that a message of the role ``tools`` lists. Raises BadRequest.

    >>> read_tools('[{"type": "function", "function": {"name": "now"}}]')
    [{'type': 'function', 'function': {'name': 'now'}}]
    """
    try:
        found = json.loads(content, parse_constant=_refuse)
        json.dumps(found, ensure_ascii=False).encode()  # half of a character, as an escape, is no text
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the tools are no JSON: {error}", hint=_FORM) from None
    if not isinstance(found, list) or not 0 < len(found) <= MAX_TOOLS:
        raise BadRequest(f"the tools must be a list of 1 to {MAX_TOOLS}", hint=_FORM)
    for i, tool in enumerate(found):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(f"tools[{i}] has no function with a name", hint=_FORM)
    return found


def tools_text(tools: list[dict[str, Any]]) -> str:
    """The content of a message that lists these tools. No character in it is an escape that need not be."""
    return json.dumps(tools, ensure_ascii=False)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")

"""The forms in which models write calls of tools, and how each is written back into a history.

Law: pure. A call's id says in which form the model wrote it, so that a client that sends the history back gets the
text that the model wrote, and with it all that was computed for it; nothing needs to be remembered for that.

* Hermes, Qwen: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, with line ends around the object
* Llama 3: ``<|python_tag|>{"name": ..., "parameters": {...}}``, where the mark may be missing
* Mistral: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]``
* plain JSON: an object or a list of them, and nothing before it
"""

from __future__ import annotations

import enum
import re
import secrets
from collections.abc import Sequence

HERMES, HERMES_END, LLAMA, MISTRAL = "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"
MARKS = (HERMES, LLAMA, MISTRAL)
"""What tells that a call follows."""


class ToolForm(enum.Enum):
    """The value is the letter that ids of such calls have."""

    HERMES = "h"
    LLAMA = "l"
    MISTRAL = "m"
    PLAIN = "p"
    LIST = "a"


def new_call_id(form: ToolForm) -> str:
    return f"call_{form.value}{secrets.token_hex(8)}"


def form_of(call_id: str) -> ToolForm:
    """The form of a call by its id; Hermes if another server made the id.

    >>> form_of("call_p0123456789abcdef"), form_of("call_abc")
    (<ToolForm.PLAIN: 'p'>, <ToolForm.HERMES: 'h'>)
    """
    found = re.fullmatch(r"call_([hlmpa])[0-9a-f]{16}", call_id)
    return ToolForm(found[1]) if found else ToolForm.HERMES


def written(form: ToolForm, calls: Sequence[tuple[str, str]]) -> str:
    """Calls (name, arguments as JSON) as a model writes them.

    >>> written(ToolForm.PLAIN, [("add", '{"a": 1}')])
    '{"name": "add", "arguments": {"a": 1}}'
    """
    key = "parameters" if form is ToolForm.LLAMA else "arguments"
    objects = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in calls]
    if form is ToolForm.HERMES:
        return "\n".join(f"{HERMES}\n{each}\n{HERMES_END}" for each in objects)
    if form is ToolForm.LLAMA:
        return "; ".join(objects)
    if form is ToolForm.PLAIN:
        return "\n".join(objects)
    return f"{MISTRAL if form is ToolForm.MISTRAL else ''}[{', '.join(objects)}]"

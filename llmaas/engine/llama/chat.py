"""Chat templates: a GGUF's Jinja template over messages, in a sandbox.

Law: no llama_cpp, no files. A template comes with a model file from anywhere: whatever it raises is a BadRequest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from llmaas.engine.llama.template_dialect import environment
from llmaas.engine.llama.template_sandbox import MOST_CPU_S
from llmaas.engine.tools import CALL_MARKS, TOOLS, read_tools
from llmaas.errors import BadRequest, ShuttingDown
from llmaas.records import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template for models that bring none, or one that Jinja cannot read."""
_SAMPLE = "Hello."
_TRIAL_CPU_S = 0.25
"""CPU time of a trial rendering."""
_TURNS = "This model wants messages of the user and of the assistant in turn: join those of one side into one message."
_NO_TOOLS = "Describe them in the system message instead, and how they are to be called."
_TOOL: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "trial_of_tools",
            "description": _SAMPLE,
            "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": _SAMPLE}}},
        },
    }
]
_SYSTEM = "This model has no system role: the system message goes into the user's message that follows it. Send one."


class ChatTemplate:
    """A compiled chat template, and what two or three trial renderings have shown of it.

    ``note`` says what is wrong with the model's own template; empty if nothing is. Some templates read a content as a
    list of parts (``{"type": "text", "text": ...}``), and a text would be lost without a word: those get such a list.
    Some refuse or ignore the system's messages: those get them in front of the user's message that follows, as
    llama.cpp's server and others do it. ``tools``: whether it writes the tools that it is given; ``tool_mark``: which
    of CALL_MARKS it has in its source, "" for none.
    """

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        self.note = ""
        self._variables = {"bos_token": bos, "eos_token": eos, "documents": None}
        if not source:
            self.note = "the model has no chat template: plain ChatML is used"
            source = CHATML
        self._sandbox = environment()
        try:
            self._template = self._sandbox.from_string(source)
        except Exception as error:  # a source that nests too deep ends in other errors than TemplateError
            self.note = f"the model's chat template cannot be read ({error}): plain ChatML is used"
            self._template = self._sandbox.from_string(CHATML)
        self._typed = frozenset[str]()
        """Roles whose content is a list of parts."""
        self._system_role = True
        self._look()
        self.tools = self._takes_tools()
        self.tool_mark = next((mark for mark in CALL_MARKS if self.tools and mark in source), "")

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        """See ``Engine.render``. The text may begin with the model's start token."""
        messages, tools = _without_tools(messages)
        if tools and not self.tools:
            raise BadRequest("the model's chat template has no place for tools", hint=_NO_TOOLS)
        if not self._system_role:
            messages = _system_in_user(messages)
        try:
            return self._render(messages, self._typed, answer, tools=tools)
        except ShuttingDown:
            raise
        except Exception as error:  # a template can fail in every way that Python can
            hint = _TURNS if _not_in_turn(messages) else ""
            raise BadRequest(f"the model's chat template refuses these messages: {error}", hint=hint) from error

    def stop(self) -> None:
        """Let renderings, those that run and those that come, end with ShuttingDown. From any thread."""
        self._sandbox.stop()

    def _render(
        self,
        messages: Iterable[Message],
        typed: frozenset[str],
        answer: bool,
        cpu_s: float = MOST_CPU_S,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        plain = [{"role": m.role, "content": _content(m, m.role in typed)} for m in messages]
        with self._sandbox.metered(cpu_s):
            return self._template.render(messages=plain, add_generation_prompt=answer, tools=tools, **self._variables)

    # -- trial renderings

    def _look(self) -> None:
        """Find out how the template takes contents and the system's messages."""
        user, assistant, system = (Message(role, _SAMPLE) for role in ("user", "assistant", "system"))
        if not self._shows([user], "user") and not self._shows([system, user], "user"):
            return  # it fails, or wants something that is not known: calls will say what
        self._shows([user, assistant, user], "assistant")
        self._system_role = self._shows([system, user], "system") or not self._shows([user], "user")

    def _takes_tools(self) -> bool:
        messages = [Message("user", _SAMPLE)]
        try:
            with_tools = self._render(messages, self._typed, False, _TRIAL_CPU_S, tools=_TOOL)
            return _TOOL[0]["function"]["name"] in with_tools
        except Exception:
            return False

    def _shows(self, messages: Sequence[Message], role: str) -> bool:
        """Whether a text of ``role`` is seen in the rendering of these messages, be it as a list of parts."""
        probe = [Message(m.role, f"{role}: {_SAMPLE}") if m.role == role else m for m in messages]
        for typed in (self._typed, self._typed | {role}):
            try:
                seen = f"{role}: {_SAMPLE}" in self._render(probe, typed, False, _TRIAL_CPU_S)
            except Exception:
                seen = False
            if seen:
                self._typed = typed
                return True
        return False


def _without_tools(messages: Sequence[Message]) -> tuple[Sequence[Message], list[dict[str, Any]] | None]:
    """The messages behind the tools, and the tools; None if there are none. Raises BadRequest."""
    if any(message.role == TOOLS for message in messages[1:]):
        raise BadRequest("the tools come before all other messages, in one message")
    if messages and messages[0].role == TOOLS:
        return messages[1:], read_tools(messages[0].content)
    return messages, None


def _content(message: Message, typed: bool) -> Any:
    return [{"type": "text", "text": message.content}] if typed else message.content


def _system_in_user(messages: Sequence[Message]) -> list[Message]:
    """The messages with each of the system's in front of the user's that follows it. Raises BadRequest if none does."""
    joined, waiting = list[Message](), list[str]()
    for message in messages:
        if message.role == "system":
            waiting.append(message.content)
        elif message.role == "user" and waiting:
            joined.append(Message("user", "\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            joined.append(message)
    if waiting:
        raise BadRequest("the model's chat template has no place for this system message", hint=_SYSTEM)
    return joined


def _not_in_turn(messages: Sequence[Message]) -> bool:
    """Whether the user or the assistant has two messages in a row, or the assistant the first."""
    roles = [message.role for message in messages if message.role != "system"]
    return roles[:1] == ["assistant"] or any(a == b for a, b in pairwise(roles))

"""Chat templates: a GGUF's Jinja template over messages, in a sandbox.

Law: no llama_cpp, no files. A template comes with a model file from anywhere, so it runs in Jinja's immutable
sandbox; whatever it raises is a BadRequest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmaas.errors import BadRequest
from llmaas.records import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template for models that bring none, or one that Jinja cannot read."""


class ChatTemplate:
    """A compiled chat template. ``note`` says what is wrong with the model's own template; empty if nothing is."""

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        self.note = ""
        self._tokens = {"bos_token": bos, "eos_token": eos}
        if not source:
            self.note = "the model has no chat template: plain ChatML is used"
            source = CHATML
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            self.note = f"the model's chat template cannot be read ({error}): plain ChatML is used"
            self._template = _environment().from_string(CHATML)

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        """See ``Engine.render``. The text may begin with the model's start token."""
        plain = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._template.render(messages=plain, add_generation_prompt=answer, **self._tokens)
        except Exception as error:  # a template can fail in every way that Python can
            raise BadRequest(f"the model's chat template refuses these messages: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    """A sandbox with the settings and helpers that transformers gives to chat templates, which authors rely on."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = time.strftime
    environment.filters["tojson"] = _tojson
    return environment


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)

"""Chat templates: the dialect of GGUF templates, and what a bad one can do (nothing)."""

from __future__ import annotations

import pytest

from llmaas.engine.llama.chat import ChatTemplate
from llmaas.errors import BadRequest
from llmaas.records import Message

CHAT = [Message("system", "Be brief."), Message("user", "Hello <b>")]


def render(source: str | None, *, answer: bool = True) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(CHAT, answer=answer)


def test_a_template_sees_messages_special_tokens_and_whose_turn_it_is() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert render(source) == "<s>[system]Be brief.</s>[user]Hello <b></s>[assistant]"
    assert render(source, answer=False) == "<s>[system]Be brief.</s>[user]Hello <b></s>"


def test_blocks_leave_no_white_space_and_loops_may_break() -> None:
    stop = "    {% if m.role == 'user' %}\n{% break %}\n    {% endif %}\n"
    source = "{% for m in messages %}\n" + stop + "{{ m.role }}\n{% endfor %}"
    assert render(source) == "system\n"


def test_tojson_escapes_no_html() -> None:
    assert render("{{ messages[1].content | tojson }}") == '"Hello <b>"'


def test_the_date_is_known() -> None:
    assert len(render("{{ strftime_now('%Y') }}")) == 4


def test_a_template_may_refuse_the_messages() -> None:
    with pytest.raises(BadRequest, match="no system role here"):
        render("{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}")


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ messages[9].content.x }}", "{{ messages.append(1) }}"])
def test_a_template_that_fails_is_a_bad_request(source: str) -> None:
    with pytest.raises(BadRequest, match="refuses these messages"):
        render(source)


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with pytest.raises(BadRequest):
        render("{{ ''.__class__.__mro__[1].__subclasses__() }}")


@pytest.mark.parametrize(
    ("source", "why"), [(None, "no chat template"), ("", "no chat"), ("{% if %}", "cannot be read")]
)
def test_without_a_readable_template_plain_chatml_is_used_and_said(source: str | None, why: str) -> None:
    template = ChatTemplate(source)
    assert why in template.note
    assert template.render(CHAT, answer=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello <b><|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_readable_template_needs_no_note() -> None:
    assert ChatTemplate("{{ messages | length }}").note == ""

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


def test_tojson_takes_the_arguments_that_transformers_gives_it() -> None:
    source = "{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=true, indent=none, separators=(',', ':'), sort_keys=true) }}"
    assert render(source) == '{"a":1,"b":"\\u00e9"}'


def test_marks_of_what_a_model_says_are_no_text() -> None:
    source = "{% for m in messages %}{%- generation -%} [{{ m.content }}] {%- endgeneration -%}{% endfor %}"
    assert render(source) == "[Be brief.][Hello <b>]"


def test_tools_and_documents_are_there_and_none() -> None:
    source = "{% if tools is none and documents is none %}none{% endif %}{% for t in tools or [] %}{{ t }}{% endfor %}"
    assert render(source) == "none"


TYPED = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% for p in m.content %}{{ p.text if p.type == 'text' }}{% endfor %}{% endfor %}"
)
TYPED_USER = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text if m.role == 'user' else m.content }}{% endfor %}"
)


@pytest.mark.parametrize("source", [TYPED, TYPED_USER])
def test_a_template_over_lists_of_parts_loses_no_text(source: str) -> None:
    assert render(source) == "<system>Be brief.<user>Hello <b>"


def test_a_template_that_takes_text_gets_text() -> None:
    both = "{% for m in messages %}{{ 'text' if m.content is string else 'list' }} {{ m.content }} {% endfor %}"
    assert render(both) == "text Be brief. text Hello <b> "


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
DEAF = "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("source", [NO_SYSTEM, DEAF])
def test_without_a_system_role_the_message_goes_into_the_users(source: str) -> None:
    assert render(source) == "<user>Be brief.\n\nHello <b>"
    with pytest.raises(BadRequest, match="no place for this system message") as caught:
        ChatTemplate(source).render(CHAT[:1], answer=False)
    assert "goes into the user's message" in caught.value.hint


ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize("roles", ["user user", "assistant user", "user assistant assistant"])
def test_messages_that_are_not_in_turn_are_refused_with_what_to_do(roles: str) -> None:
    with pytest.raises(BadRequest, match="must alternate") as caught:
        ChatTemplate(ALTERNATES).render([Message(role, "x") for role in roles.split()], answer=True)
    assert "join those of one side into one message" in caught.value.hint


def test_a_template_may_refuse_the_messages() -> None:
    with pytest.raises(BadRequest, match="not today"):
        render("{% if messages[1].content != 'x' %}{{ raise_exception('not today') }}{% endif %}")


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

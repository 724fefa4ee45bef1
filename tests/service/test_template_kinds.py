"""Chat templates of some fifty families: a context that grows turn by turn holds what the template makes of it all."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from llmaas.errors import BadRequest
from llmaas.records import Message
from tests.support.template_talk import EOS, TEMPLATES, Talk, TextEngine

SPACED = {
    "alpaca-plain-text",
    "command-r",
    "deepseek-coder-plain-text",
    "llama2-system-in-first-user",
    "mistral-v0.3-system-in-last-user",
    "mistral-v7-system-prompt",
    "openchat",
    "phi-2-plain-text",
    "vicuna-plain-text",
    "zephyr-tinyllama",
    "llava-typed-first-part",
    "ignores-the-system",
    "idefics-typed-only",
    "glm4",
}
"""Families that open an answer with other white space than they write before a past one."""
WRITTEN_ANEW = {
    "command-r7b-thinking",
    "deepseek-r1-distill",
    "exaone-4-thoughts",
    "glm-4.5-thoughts",
    "gpt-oss-harmony",
    "minimax-m2-thoughts",
    "nemotron-nano-v2",
    "qwen3-no-thinking",
    "qwen3.5-needs-a-user",
}
"""Families that write a past answer in another way than they open one."""


def said(i: int, thinks: bool) -> str:
    return f"<think>\nhm {i}\n</think>\n\nAnswer {i}." if thinks else f"Answer {i}."


def talk(kind: str, *, system: str = "", thinks: bool = False, turns: int = 3, keep_thoughts: bool = False) -> Talk:
    """A conversation that waits for its last answer."""
    t = Talk(TextEngine(TEMPLATES[kind]), keep_thoughts=keep_thoughts)
    if system:
        t.add(Message("system", system))
    for i in range(turns):
        t.add(Message("user", f"Question {i}?"), answer=True)
        if i < turns - 1:
            t.answer(said(i, thinks))
    return t


def test_there_are_at_least_forty_families() -> None:
    assert len(TEMPLATES) >= 40


@pytest.mark.parametrize("thinks", [False, True], ids=["", "thinks"])
@pytest.mark.parametrize("system", ["", "Be brief."], ids=["", "system"])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_each_turn_makes_the_context_the_templates_own_whole(kind: str, system: str, thinks: bool) -> None:
    for turns in (1, 2, 3):
        t = talk(kind, system=system, thinks=thinks, turns=turns)
        if kind in SPACED:
            assert "".join(t.text.split()) == "".join(t.whole.split())
        else:
            assert t.text == t.whole
    if not thinks and (kind != "mistral-v0.3-system-in-last-user" or not system):
        assert len(t.n_unchanged) == (2 if kind in WRITTEN_ANEW else 0)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_only_the_last_answer_and_the_new_turn_are_computed_anew(kind: str) -> None:
    t = talk(kind, thinks=True, turns=6)
    turn = len(t.live.tokens) // 6 + 40
    assert all(n >= i * turn // 3 for i, n in enumerate(t.n_unchanged))
    if t.n_unchanged:
        assert len(t.live.tokens) - t.n_unchanged[-1] < 2.5 * turn


@pytest.mark.parametrize("kind", TEMPLATES)
def test_each_message_has_its_own_tokens(kind: str) -> None:
    t = Talk(TextEngine(TEMPLATES[kind]))
    t.add(Message("system", "Be brief."), Message("user", "Yes?"), Message("assistant", "No."), Message("user", "Oh?"))
    engine, end = t.text_engine, 0
    for mark in t.live.marks:
        own = engine.text(t.live.tokens[mark.start : mark.end])
        assert mark.start == end and (mark.message.content in own or (mark.message.role == "system" and not own))
        assert all(
            other.message.content not in own
            for other in t.live.marks
            if other.message.role != "system" and other is not mark
        )
        end = mark.end
    assert end == len(t.live.tokens)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_messages_added_one_by_one_or_together_are_the_same(kind: str) -> None:
    together, single = Talk(TextEngine(TEMPLATES[kind])), Talk(TextEngine(TEMPLATES[kind]))
    messages = [
        Message("system", "Be brief."),
        Message("user", "Yes?"),
        Message("assistant", "No."),
        Message("user", "?"),
    ]
    together.add(*messages, answer=True)
    for message in messages[:-1]:
        single.add(message)
    single.add(messages[-1], answer=True)
    assert together.text == together.whole
    if kind != "mistral-v0.3-system-in-last-user":  # its system message moves on when another message follows
        assert single.text == single.whole


@pytest.mark.parametrize("kind", TEMPLATES)
def test_with_kept_thoughts_the_context_only_grows(kind: str) -> None:
    t = talk(kind, system="Be brief.", thinks=True, turns=1, keep_thoughts=True)
    for i in range(3):
        before = t.text
        t.answer(said(i, True))
        t.add(Message("user", f"And {i}?"), answer=True)
        assert t.text.startswith(before + said(i, True)) and f"And {i}?" in t.text[len(before) :]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_number_of_renderings_does_not_grow(kind: str) -> None:
    counts = []
    for n in (3, 60):
        t = Talk(TextEngine(TEMPLATES[kind]))
        pairs = [Message("user", "Yes?"), Message("assistant", "No.")] * n
        t.add(*pairs, Message("user", "Well?"), answer=True)
        t.answer("<think>\nhm\n</think>\n\nSo.")
        before = t.text_engine.n_renderings
        t.add(Message("user", "Well?"), answer=True)
        counts.append((before, t.text_engine.n_renderings - before))
    assert counts[0] == counts[1] and sum(counts[0]) < 40


# -- what templates want


def test_a_system_message_waits_for_the_user_where_the_template_needs_one() -> None:
    for kind in ("qwen3.5-needs-a-user", "gemma1-no-system", "llama2-system-in-first-user"):
        t = Talk(TextEngine(TEMPLATES[kind]))
        t.add(Message("system", "Be brief."))
        assert not t.live.tokens and t.live.messages == [Message("system", "Be brief.")]
        if "raise_exception('No" in TEMPLATES[kind]:
            with pytest.raises(BadRequest, match="No user query"):
                t.add(answer=True)
        t.add(Message("user", "Yes?"), answer=True)
        assert "Be brief." in t.text and [m.role for m in t.live.messages] == ["system", "user"]


def test_a_role_that_the_template_leaves_out_is_refused() -> None:
    t = talk("ignores-the-system")
    for when in ("within a conversation", "at its start"):
        with pytest.raises(BadRequest, match=r"leaves out|cannot add") as caught:
            t.add(Message("tool", "42"), answer=True)
        assert "raw prompt" in caught.value.hint, when
        t = Talk(TextEngine(TEMPLATES["ignores-the-system"]))


def test_thoughts_stay_in_a_loop_of_tool_calls_and_go_when_the_user_speaks_again() -> None:
    t = talk("qwen3-thoughts", turns=1)
    t.answer("<think>\nlook it up\n</think>\n\n<tool_call>")
    t.add(Message("tool", "42"), answer=True)
    assert t.text == t.whole and "look it up" in t.text and not t.n_unchanged
    t.answer("<think>\nso it is\n</think>\n\nIt is 42.")
    t.add(Message("user", "Thanks."), answer=True)
    assert t.text == t.whole and "look it up" not in t.text and "so it is" not in t.text
    assert [m.content for m in t.live.messages][1].startswith("<think>\nlook"), "the conversation keeps what was told"
    t.answer("<think>\nbye\n</think>\n\nBye.")
    t.add(Message("user", "Bye."), answer=True)
    assert t.text == t.whole and len(t.n_unchanged) == 2


def test_an_answer_of_control_tokens_is_kept_since_its_text_does_not_say_it() -> None:
    t = talk("gpt-oss-harmony", turns=1)
    engine = t.text_engine
    drawn = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    t.answer("analysisHm.assistantfinalYes.")
    start = t.live.marks[-1].start
    tokens = engine.tokenize(drawn, special=True, bos=False)
    del t.live.tokens[start:]
    t.live.tokens.extend(tokens)
    t.live.marks[-1] = type(t.live.marks[-1])(t.live.marks[-1].message, start, len(t.live.tokens), True)
    t.add(Message("user", "Sure?"), answer=True)
    assert (
        t.text.endswith(drawn + "<|end|><|start|>user<|message|>Sure?<|end|><|start|>assistant") and not t.n_unchanged
    )


def test_an_answer_that_ends_with_white_space_is_written_anew_too() -> None:
    t = talk("command-r7b-thinking", turns=1)
    t.answer("Yes. \n")
    t.add(Message("user", "Sure?\n"), Message("user", "Well? "), answer=True)
    assert t.text == t.whole and len(t.n_unchanged) == 1
    for mark in t.live.marks:
        assert t.text_engine.text(t.live.tokens[: mark.end]).endswith("<|END_OF_TURN_TOKEN|>")


def test_white_space_alone_is_no_reason_to_compute_anew() -> None:
    t = talk("llama3", turns=1)
    t.answer(" Yes. \n")
    t.add(Message("user", "Sure?"), answer=True)
    assert "\n\n Yes. \n<|eot_id|>" in t.text and not t.n_unchanged


def test_after_raw_text_a_turn_is_as_after_a_short_conversation() -> None:
    t = Talk(TextEngine(TEMPLATES["smollm2-default-system"]))
    t.raw("Once upon a time")
    t.add(Message("user", "Go on."), answer=True)
    assert t.text == "Once upon a time<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n"
    t.answer("There was.")
    t.add(Message("user", "More."), answer=True)
    assert t.text.endswith("There was.<|im_end|>\n<|im_start|>user\nMore.<|im_end|>\n<|im_start|>assistant\n")


def test_raw_text_before_an_answer_is_not_lost_when_it_is_written_anew() -> None:
    t = Talk(TextEngine(TEMPLATES["qwen3.5-needs-a-user"]))
    t.add(Message("user", "Yes?"))
    t.raw("(By the way.)")
    t.add(answer=True)
    t.answer("hm</think>\n\nNo.")
    t.add(Message("user", "Oh?"), answer=True)
    assert "(By the way.)" in t.text and not t.n_unchanged


def test_an_end_token_that_is_written_unless_an_answer_follows_is_not_in_the_context() -> None:
    t = Talk(TextEngine(TEMPLATES["phi-3.5-end-unless-answering"]))
    t.add(Message("user", "Yes?"))
    assert t.text == "<|user|>\nYes?<|end|>\n" and EOS in t.text_engine.chat.render(t.live.messages, answer=False)
    t.add(answer=True)
    assert t.text == t.whole


# -- templates that come with the packages at hand


def packaged() -> dict[str, str]:
    """By the source: importing it would run all of llama_cpp, which takes llama.cpp's log from the engine."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    found = {}
    for node in ast.parse(Path(spec.origin).with_name("llama_chat_format.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name.endswith("_CHAT_TEMPLATE") and isinstance(node.value, ast.Constant):
                found[name] = str(node.value.value)
    assert found
    return found


@pytest.mark.parametrize("name", packaged())
def test_the_templates_of_llama_cpp_python_hold(name: str) -> None:
    t = Talk(TextEngine(packaged()[name]))
    t.add(Message("system", "Be brief."))
    for i in range(3):
        t.add(Message("user", f"Question {i}?"), answer=True)
        assert t.text == t.whole
        t.answer(f"Answer {i}.")

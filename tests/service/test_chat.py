from __future__ import annotations

from collections.abc import Sequence

import pytest

from llmaas.errors import BadRequest
from llmaas.records import Message
from llmaas.service.chat import TextPart, turn_parts


def chatml(messages: Sequence[Message], answer: bool) -> str:
    lines = "".join(f"<{m.role}>{m.content.strip()}<end>\n" for m in messages)
    return lines + ("<assistant>" if answer else "")


def forgetful(messages: Sequence[Message], answer: bool) -> str:
    """A template that drops the thoughts of all answers but the last message, as reasoning models' do."""
    last = len(messages) - 1
    return chatml(
        [Message(m.role, m.content if i == last else m.content.split("|")[-1]) for i, m in enumerate(messages)], answer
    )


U, A = Message("user", "hi"), Message("assistant", "hello")


def texts(parts: list[TextPart]) -> list[str]:
    return [p.text for p in parts]


def test_the_parts_of_all_turns_make_the_rendering_of_the_whole() -> None:
    first = turn_parts(chatml, [], [Message("system", "s"), U], past_open=False, answer=True)
    second = turn_parts(chatml, [Message("system", "s"), U, A], [U], past_open=True, answer=True)
    whole = "".join(texts(first)) + "hello" + "".join(texts(second))
    assert whole == chatml([Message("system", "s"), U, A, U], True)
    assert [p.message for p in second] == [None, U, None]


def test_an_open_answer_is_continued_without_any_text() -> None:
    assert turn_parts(chatml, [U, A], [], past_open=True, answer=True) == []


def test_an_appended_message_opens_no_answer() -> None:
    assert texts(turn_parts(chatml, [], [U], past_open=False, answer=False)) == ["<user>hi<end>\n"]
    assert texts(turn_parts(chatml, [U], [], past_open=False, answer=True)) == ["<assistant>"]


def test_a_template_that_trims_content_still_closes_an_open_answer() -> None:
    parts = turn_parts(chatml, [U, Message("assistant", "  spaced  ")], [U], past_open=True, answer=False)
    assert texts(parts) == ["<end>\n", "<user>hi<end>\n"]


def test_a_template_that_rewrites_earlier_turns_gets_the_turn_as_after_a_short_past() -> None:
    past = [U, Message("assistant", "a long thought|yes")]
    assert texts(turn_parts(forgetful, past, [U], past_open=True, answer=True))[-2:] == [
        "<user>hi<end>\n",
        "<assistant>",
    ]


def test_a_template_that_cannot_be_continued_is_refused_with_a_way_out() -> None:
    def upside_down(messages: Sequence[Message], answer: bool) -> str:
        return f"{len(messages)}" + chatml(messages[::-1], answer)

    with pytest.raises(BadRequest) as e:
        turn_parts(upside_down, [U], [U], past_open=False, answer=False)
    assert "raw prompt" in e.value.hint

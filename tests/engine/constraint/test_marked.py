"""Free text with JSON by a schema between two marks, with llguidance and without it."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.port import Constraint, whole
from llmaas.engine.constraint.vocabulary import Vocabulary
from llmaas.engine.fake import text

SCHEMA = {
    "type": "object",
    "properties": {"name": {"const": "add"}, "arguments": {"type": "object", "properties": {"a": {"enum": [1, 22]}}}},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
MARKS = ("<tool_call>", "</tool_call>")
CALL = '{"name": "add", "arguments": {"a": 22}}'


def begun(constraints: Constraints, marks: tuple[str, str] = MARKS) -> Constraint:
    found = constraints.begin(Sampling(json_schema=json.dumps(SCHEMA), schema_marks=marks))
    assert found is not None
    return found


def taken(constraint: Constraint, answer: str) -> int:
    """How many bytes of the answer are accepted. A mask and ``accept`` must say the same of each."""
    for i, byte in enumerate(answer.encode()):
        allowed = bool(whole(constraint.allowed())[byte])
        assert constraint.accept(byte) is allowed, answer[:i]
        if not allowed:
            return i
    return len(answer.encode())


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Hello. No calls here, not even <tool_cal> or <<tool_cal.",
        f"Let me see. <tool_call>\n{CALL}\n</tool_call>",
        f"<tool_call>{CALL}</tool_call>",
        f"<<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call> and text </tool_call>",
    ],
)
def test_text_and_calls_by_the_schema_pass_and_may_end(constraints: Constraints, answer: str) -> None:
    constraint = begun(constraints)
    assert taken(constraint, answer) == len(answer.encode())
    assert constraint.accept(text.IM_END) and whole(constraint.allowed())[text.IM_END]


@pytest.mark.parametrize(
    ("answer", "n"),
    [
        ("<tool_call>x", 11),
        ('a<tool_call>\n{"name": "sub"', 23),
        ('<tool_call>{"name": "add", "arguments": {"a": 3', 46),
        (f"<tool_call>{CALL}</tool_kall>", 11 + len(CALL) + 7),
        (f"<tool_call>{CALL}, {CALL}", 11 + len(CALL)),
        ("<tool_call>" + "\n" * 20, 19),
        (f"<tool_call>{CALL}" + " " * 20, 11 + len(CALL) + 8),
    ],
)
def test_what_is_not_by_the_schema_is_refused_where_it_begins(constraints: Constraints, answer: str, n: int) -> None:
    constraint = begun(constraints)
    assert taken(constraint, answer) == n
    assert not constraint.accept(text.IM_END) and not whole(constraint.allowed())[text.IM_END], (
        "it cannot end within a call"
    )


def test_without_a_second_mark_text_goes_on_behind_the_json(constraints: Constraints) -> None:
    constraint = begun(constraints, ("[CALL]", ""))
    answer = f"[CALL]{CALL} and [CALL] {CALL}!"
    assert taken(constraint, answer) == len(answer) and constraint.accept(text.IM_END)


def test_wherever_chance_leads_an_answer_has_whole_calls(constraints: Constraints) -> None:
    rng = random.Random(5)
    for _ in range(30):
        constraint, said = begun(constraints), bytearray()
        while len(said) < 400:
            allowed = whole(constraint.allowed())
            mark = MARKS[0].encode()
            wish = mark[len(said) % 40] if len(said) % 40 < len(mark) else rng.choice(b'{}"a12:, \n<>/')
            byte = wish if allowed[wish] else int(rng.choice(np.flatnonzero(allowed)))
            if text.is_end(byte):
                break
            assert constraint.accept(byte)
            said.append(byte)
        for part in said.decode("utf-8", "replace").split(MARKS[0])[1:]:
            found = re.match(r"\s*(\{.*?\}\s*\})\s*</tool_call>", part, re.DOTALL)
            if found:
                assert json.loads(found[1])["name"] == "add"
            else:
                assert part == said.decode("utf-8", "replace").split(MARKS[0])[-1], "only the last may be cut"


WORDS = [
    "<",
    "tool",
    "_call",
    ">",
    ">{",
    ">\n",
    '{"name": "add", "arguments": {"a": 1}}',
    "\n",
    "</",
    "tool_call",
    "a",
    "x>",
    "",
]


@pytest.mark.parametrize("guidance", [False])
def test_tokens_of_many_bytes_stop_at_the_mark(guidance: bool) -> None:
    vocabulary = Vocabulary(len(WORDS), lambda t: WORDS[t].encode(), lambda t: t == len(WORDS) - 1)
    constraint = begun(Constraints(vocabulary, guidance=guidance))
    for word in ("x>", "<", "tool", "_call"):
        assert constraint.accept(WORDS.index(word))
    assert not constraint.accept(WORDS.index(">{")) and not whole(constraint.allowed())[WORDS.index(">{")]
    for word in (">\n", '{"name": "add", "arguments": {"a": 1}}', "\n", "</", "tool_call", ">", "a"):
        assert whole(constraint.allowed())[WORDS.index(word)], word
        assert constraint.accept(WORDS.index(word)), word
    assert constraint.accept(len(WORDS) - 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"schema_marks": MARKS},
        {"json_schema": "{}", "schema_marks": ("<a>",)},
        {"json_schema": "{}", "schema_marks": (" ", "")},
        {"json_schema": "{}", "schema_marks": ("<a>", "x" * 65)},
    ],
)
def test_marks_that_cannot_be_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="schema_marks"):
        Sampling(**fields)  # type: ignore[arg-type]

"""How much of a text one match of a pre-tokenizer may hold."""

from __future__ import annotations

import pytest

from llmaas.engine.llama.text_runs import MOST_RUN, longest_run, refuse_long_runs
from llmaas.errors import BadRequest


@pytest.mark.parametrize(
    ("pre", "text", "longest"),
    [
        ("gpt-4o", "a few short words", 5),
        ("gpt-4o", "-" * 40, 40),
        ("gpt-4o", "a" + " " * 40 + "b", 40),
        ("gpt-4o", "one\ntwo", 3),
        ("gpt-4o", "\n/" * 20, 40),  # [\r\n/]* takes both
        ("gpt-4o", "\u00a0 " * 20, 40),  # both are white space to llama.cpp
        ("bloom", "a\x1c" * 20, 40),  # white space to Python, not to llama.cpp
        ("gpt-4o", "中" * 40, 40),
        ("gpt-4o", "", 0),
        ("exaone-moe", "a few short words\nmore", 17),
        ("qwen2", "a" * 40, 0),
        ("a name that is new", "a" * 40, 40),
    ],
)
def test_the_longest_run_is_counted_where_a_match_may_hold_it(pre: str, text: str, longest: int) -> None:
    assert longest_run(pre, text) == longest


def test_a_run_that_is_too_long_is_refused_with_its_length_and_a_way_out() -> None:
    refuse_long_runs("gpt-4o", "", MOST_RUN)
    with pytest.raises(BadRequest, match=str(MOST_RUN + 1)) as refused:
        refuse_long_runs("gpt-4o", "", MOST_RUN + 1)
    assert "line breaks" in refused.value.hint


@pytest.mark.parametrize(("pre", "text"), [("deepseek-llm", " " * 3000 + "1"), ("superbpe", "1" * 3000)])
def test_where_a_run_takes_quadratic_time_fewer_characters_are_taken(pre: str, text: str) -> None:
    refuse_long_runs(pre, text[:2000], 0)
    refuse_long_runs("gpt-4o", text, longest_run("gpt-4o", text))
    with pytest.raises(BadRequest, match="minutes"):
        refuse_long_runs(pre, text, longest_run(pre, text))


def test_spaces_before_words_take_no_quadratic_time() -> None:
    refuse_long_runs("deepseek-llm", (" " * 3000 + "a") * 10, 3000)

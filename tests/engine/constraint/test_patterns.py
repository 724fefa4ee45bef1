"""Patterns: what they allow, Python's ``re`` finds."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.calls import Sampling
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.pattern import read_pattern
from llmaas.engine.constraint.port import Constraint
from llmaas.errors import BadRequest

CHARACTERS = [*"ab-/ \u00e9|^$.([", "\\.", "\\-", "\\\\", "\\n", "\\u00e9", '\\"']
CLASSES = ["\\d", "\\w", "\\s", "\\D", "\\W", "\\S", "[^\\d]", "[\\w.]", "[^\\w]", "[^\\S]", '[^\\s"]']
SETS = ["[a-z]", "[^a]", "(a|b)", "(?:ab)", "(a|^b)", "[\\x41-\\x43]", "[a&&b]", "[a-c-e]"]
ATOMS = st.sampled_from([*CHARACTERS, *CLASSES, *SETS])
COUNTS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "{", "{2}{3}"])
PATTERNS = st.lists(st.tuples(ATOMS, COUNTS), min_size=1, max_size=5).map(
    lambda parts: "".join(a + n for a, n in parts)
)
TEXTS = ["", "a", "b", "ab", "\n", "a\n", "1", "\u0661", "\u00e9", "\x1c", " ", "\u00a0", "\u2028", "_", "A"]


@settings(deadline=None)
@given(PATTERNS, st.sampled_from(["^", ""]), st.sampled_from(["$", ""]))
def test_no_text_is_allowed_that_python_does_not_find(
    constraints: Constraints,
    takes: Callable[[Constraints, Sampling, str], bool],
    wander: Callable[[Constraint, int], str | None],
    pattern: str,
    begin: str,
    end: str,
) -> None:
    pattern = begin + pattern + end
    sampling = Sampling(json_schema=json.dumps({"type": "string", "pattern": pattern}))
    try:
        constraint = constraints.begin(sampling)
    except BadRequest:
        return
    assert constraint is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "[a&&b]" may mean something else one day
        compiled = re.compile(pattern)
    said = wander(constraint, 1)
    assert said is None or compiled.search(json.loads(said))
    for text in TEXTS:
        assert compiled.search(text) or not takes(constraints, sampling, json.dumps(text, ensure_ascii=False))


@pytest.mark.parametrize(
    "pattern", ["[" * 2000, "(" * 2000, "(" * 900 + ")" * 900, "(a{9}){9}{9}", "(((a{9}){9}){9}){9}"]
)
def test_a_bomb_is_refused(pattern: str) -> None:
    with pytest.raises(BadRequest):
        read_pattern(pattern)

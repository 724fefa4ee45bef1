"""llguidance: its automata are small and made anew, and llmaas works where it is not installed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap

import pytest

from llmaas.calls import Sampling
from llmaas.engine.constraint import guidance
from llmaas.engine.constraint.guidance import is_installed
from llmaas.engine.constraint.port import Constraint, TooComplex, whole
from llmaas.engine.fake import text
from llmaas.errors import Busy
from tests.engine.constraint.conftest import over_bytes

needs_guidance = pytest.mark.skipif(not is_installed(), reason="llguidance is not installed")


def follow(constraint: Constraint | None, answer: str) -> None:
    """The answer is allowed, and each of its tokens is in the mask."""
    assert constraint is not None
    for byte in answer.encode():
        assert whole(constraint.allowed())[byte]
        assert constraint.accept(byte)


def long_text(n: int) -> Sampling:
    return Sampling(json_schema=json.dumps({"type": "string", "maxLength": n}))


@needs_guidance
def test_a_long_text_with_a_limit_uses_up_its_automata_and_goes_on() -> None:
    """Each place of the text is a state. It failed after some thousand, and all later answers with it."""
    constraints = over_bytes("guidance")
    for _ in range(2):
        constraint = constraints.begin(long_text(10_000))
        follow(constraint, '"' + "The sea is wide and deep. " * 120 + '\\n"')
        assert constraint is not None and constraint.accept(text.IM_END)


@needs_guidance
def test_a_limit_is_kept_to_with_automata_that_were_made_anew() -> None:
    constraint = over_bytes("guidance").begin(long_text(1_500))
    follow(constraint, '"' + "a" * 1_500)
    assert constraint is not None
    assert not constraint.accept(ord("a")) and constraint.accept(ord('"')) and constraint.accept(text.IM_END)


@needs_guidance
def test_answers_that_take_all_memory_for_automata_fail_and_later_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "MAX_LEXER_STATES", 2_500)
    constraints, answer = over_bytes("guidance"), '"' + "a" * 900 + '"'
    begun = [constraints.begin(long_text(10_000)) for _ in range(4)]
    with pytest.raises(Busy, match="take all memory"):
        for constraint in begun:
            follow(constraint, answer)
    begun.clear()
    del constraint
    follow(constraints.begin(long_text(10_000)), answer)


@needs_guidance
def test_automata_that_grow_with_each_token_end_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LEXER_STATES", 60), ("MOST_LEXER_STATES", 200)):
        monkeypatch.setattr(guidance, name, value)
    explosive = Sampling(json_schema=json.dumps({"type": "string", "pattern": "^[ab]*a[ab]{60}c$"}))
    constraint, rng = over_bytes("guidance").begin(explosive), random.Random(1)
    with pytest.raises(TooComplex, match="cannot go on by the json_schema"):
        follow(constraint, '"' + "".join(rng.choice("ab") for _ in range(5_000)))


def test_a_panic_of_rust_is_told_as_an_error() -> None:
    """It derives from BaseException, so nobody else would catch it."""
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(TooComplex, match="at index 7"), guidance.panics_told():
        raise panic("at index 7")
    with pytest.raises(KeyboardInterrupt), guidance.panics_told():
        raise KeyboardInterrupt


def test_without_llguidance_schemas_are_followed_all_the_same() -> None:
    """In a process that cannot import it."""
    code = """
        import sys
        sys.modules["llguidance"] = None
        from llmaas.calls import Sampling
        from llmaas.engine.constraint.guidance import is_installed
        from llmaas.engine.fake import FakeEngine
        from llmaas.engine.base import BatchItem
        assert not is_installed()
        engine = FakeEngine(64, 1)
        sampling = Sampling(json_schema='{"enum": ["yes", {"no": [1.5]}]}')
        assert engine.check_sampling(sampling) is not None
        engine.set_sampler(0, sampling)
        tokens, said = [1], b""
        while not engine.is_end((token := engine.step([BatchItem(0, engine.length(0), tokens, 0)])[0])):
            tokens, said = [token], said + engine.piece(token)
        print(said.decode())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) in ("yes", {"no": [1.5]})

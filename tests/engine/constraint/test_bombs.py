"""Small texts that would take much: each is refused, or harmless, in half a second and a few megabytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import MAX_GRAMMAR, Sampling
from llmaas.engine.constraint import compiler, machine
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.limits import MAX_COMPILING
from llmaas.engine.constraint.port import TooComplex, whole
from llmaas.errors import BadRequest, Busy
from tests.engine.constraint.conftest import over_bytes
from tests.support.cpu_time import at_most

LIMIT_S, LIMIT_BYTES = 0.5, 64 << 20


def chain(**link: Any) -> str:
    """Each schema names the next one twice."""
    defs = {f"a{i}": _twice(link, f"#/$defs/a{i + 1}") for i in range(60)}
    return json.dumps({"$ref": "#/$defs/a0", "$defs": {**defs, "a60": {"type": "null"}}})


def _twice(link: dict[str, Any], reference: str) -> dict[str, Any]:
    return {key: [{"$ref": reference}] * 2 if value is None else value for key, value in link.items()}


BOMBS = {
    "a pattern of brackets": {"json_schema": json.dumps({"type": "string", "pattern": "[" * 14_000})},
    "a pattern of short brackets": {"json_schema": json.dumps({"type": "string", "pattern": "[" * 1_900})},
    "references side by side": {"json_schema": chain(type="array", prefixItems=None, minItems=2)},
    "references in allOf": {"json_schema": chain(allOf=None)},
    "references in anyOf": {"json_schema": chain(anyOf=None)},
    "references in oneOf": {"json_schema": chain(oneOf=None)},
    "references within references": {
        "json_schema": json.dumps(
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"properties": {f"p{i}": {"$ref": "#/$defs/a"} for i in range(60)}, "required": ["p0"]}},
            }
        )
    },
    "a product of alternatives": {
        "json_schema": json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(4)]} for i in range(12)]}
        )
    },
    "counts within counts": {
        "json_schema": '{"type":"array","minItems":1000,"items":' * 9 + '{"type":"string","minLength":99999}' + "}" * 9
    },
    "a great multiple": {"json_schema": '{"type":"integer","multipleOf":1000003}'},
    "multiples of one another": {
        "json_schema": json.dumps({"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83, 79, 73)]})
    },
    "many properties": {"json_schema": json.dumps({"properties": {f"p{i}": {} for i in range(4_000)}})},
    "many optional properties": {
        "json_schema": json.dumps({"properties": {f"p{i}": {"type": "null"} for i in range(900)}})
    },
    "many values": {"json_schema": json.dumps({"enum": list(range(9_000))})},
    "deep values": {"json_schema": '{"const":' + "[" * 3_000 + "]" * 3_000 + "}"},
    "branches to compare": {
        "json_schema": json.dumps({"oneOf": [{"oneOf": [{"minimum": i} for i in range(90)]} for _ in range(20)]})
    },
    "repetitions": {"grammar": "root ::= " + "[a]{0,2000} " * 5_000},
    "repetitions in one another": {"grammar": "root ::= " + "(" * 100 + "[a]" + "){0,2000}" * 100},
    "empty ways": {"grammar": "root ::= " + "a " * 30_000 + '\na ::= "" | "" | "x"'},
    "rules that double": {
        "grammar": "root ::= r0\n"
        + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(2_000))
        + '\nr2000 ::= "" | "a"'
    },
    "a row of rules": {
        "grammar": "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(3_500)) + '\nr3500 ::= "a"'
    },
    "sets": {"grammar": "root ::= [" + "".join(f"\\u{i:04x}" for i in range(1, 20_000, 2))[: MAX_GRAMMAR - 20] + "]"},
    "an open string": {"grammar": 'root ::= "' + "a\\\\" * 21_000},
    "a long name": {"grammar": "a" * (MAX_GRAMMAR - 1)},
    "spaces": {"grammar": "a " + " " * (MAX_GRAMMAR - 3)},
}


@contextmanager
def measured() -> Iterator[None]:
    """The body takes no longer, and no more memory, than any request may."""
    before = _resident()
    with at_most(LIMIT_S):
        yield
    assert _resident() - before < LIMIT_BYTES


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("texts", BOMBS.values(), ids=BOMBS)
def test_a_bomb_takes_neither_time_nor_memory(constraints: Constraints, texts: dict[str, str]) -> None:
    assert all(len(text) <= MAX_GRAMMAR for text in texts.values())
    sampling = Sampling(**texts)  # type: ignore[arg-type]
    with measured():
        try:
            constraint = constraints.begin(sampling)
            assert constraint is not None
            whole(constraint.allowed())
        except (BadRequest, TooComplex):
            pass


def test_ambiguity_ends_an_answer_not_the_machine(constraints: Constraints) -> None:
    grammar = 'root ::= s\ns ::= "a" s "b" | "a" s "c" | "d"'
    with measured():
        constraint = constraints.begin(Sampling(grammar=grammar))
        assert constraint is not None
        with pytest.raises(TooComplex, match="ways"):
            while constraint.accept(ord("a")):
                assert whole(constraint.allowed())[ord("a")]


def test_what_takes_too_long_is_given_up_and_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    constraints, go_on = over_bytes("machine"), threading.Event()
    constraints.check(Sampling(grammar='root ::= "known"'))
    monkeypatch.setattr(compiler, "COMPILE_S", 0.05)
    monkeypatch.setattr(compiler, "read_gbnf", lambda text: go_on.wait(60))
    for n in range(MAX_COMPILING):
        with pytest.raises(BadRequest, match="takes more than"):
            constraints.check(Sampling(grammar=f'root ::= "{n}"'))
    with pytest.raises(Busy):
        constraints.check(Sampling(grammar='root ::= "more"'))
    constraints.check(Sampling(grammar='root ::= "known"'))
    go_on.set()
    monkeypatch.undo()
    constraints.check(Sampling(grammar='root ::= "more"'))


def test_threads_that_could_not_be_had_take_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    constraints = over_bytes("machine")
    monkeypatch.setattr(compiler, "COMPILE_S", 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        for n in range(MAX_COMPILING + 1):
            with pytest.raises(RuntimeError, match="new thread"):
                constraints.check(Sampling(grammar=f'root ::= "{n}"'))
    constraints.check(Sampling(grammar='root ::= "more"'))


def test_a_constraint_is_made_once_and_those_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    constraints, made = over_bytes("machine"), []
    read = compiler.read_gbnf
    monkeypatch.setattr(compiler, "read_gbnf", lambda text: made.append(text) or read(text))
    often = 'root ::= "often"'
    monkeypatch.setattr(compiler, "MAX_KEPT_BYTES", 50_000)
    for n in range(40):
        constraints.check(Sampling(grammar=often))
        assert constraints.begin(Sampling(grammar=often, temperature=1.0)) is not None
        constraints.check(Sampling(grammar=f'root ::= "{n}"'))
    assert made.count(often) == 1
    assert constraints.begin(Sampling(grammar='root ::= "0"')) is not None
    assert made.count('root ::= "0"') == 2


def test_a_constraint_that_is_held_stays_ready_and_only_so_many_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the engine's thread would have to make it, when the request's turn comes."""
    constraints, made = over_bytes("machine"), []
    read = compiler.read_gbnf
    monkeypatch.setattr(compiler, "read_gbnf", lambda text: made.append(text) or read(text))
    monkeypatch.setattr(compiler, "MAX_KEPT_BYTES", 10_000)
    large = [Sampling(grammar='root ::= "' + chr(97 + n) * 400 + '"') for n in range(8)]
    held = [constraints.check(sampling) for sampling in large]
    assert all(constraints.begin(sampling) for sampling in large) and len(made) == len(large)
    monkeypatch.setattr(compiler, "MAX_HELD_BYTES", sum(ready.n_bytes for ready in held if ready) + 10_000)
    with pytest.raises(Busy, match="hold too many"):
        constraints.check(Sampling(grammar='root ::= "' + "z" * 400 + '"'))
    held.clear()
    constraints.check(Sampling(grammar='root ::= "' + "z" * 400 + '"'))
    assert constraints.begin(large[0]) and made.count(large[0].grammar) == 2


def test_what_machines_have_found_out_is_bounded_for_all_of_them_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_NODES", 20_000)
    constraints, begun = over_bytes("machine"), []
    with measured():
        for n in range(40):
            constraint = constraints.begin(Sampling(grammar=f'root ::= "(" root ")" | [a-z{n}]+'))
            assert constraint is not None
            begun.append(constraint)
            for _ in range(100):
                assert constraint.accept(ord("("))
            whole(constraint.allowed())
    for constraint in begun:  # each still knows where it stands
        assert not constraint.accept(ord(")")) and constraint.accept(ord("a")) and constraint.accept(ord(")"))


def test_what_goes_wrong_inside_is_told_as_a_fault_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> None:
        raise ZeroDivisionError("inside")

    constraints = over_bytes("machine")
    monkeypatch.setattr(compiler, "read_gbnf", broken)
    with pytest.raises(BadRequest, match="inside"):
        constraints.check(Sampling(grammar='root ::= "a"'))

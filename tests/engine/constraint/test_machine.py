"""The machine and the grammars that it follows: what they allow, what is refused, and that no text takes much."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest

from llmaas.calls import MAX_GRAMMAR, Sampling
from llmaas.engine.constraint import limits, machine
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.gbnf import read_gbnf
from llmaas.engine.constraint.machine import GrammarMachine, MachineConstraint, MachineMemory
from llmaas.engine.constraint.port import TooComplex, whole
from llmaas.engine.constraint.utf8 import is_start, span
from llmaas.engine.constraint.vocabulary import Vocabulary
from llmaas.errors import BadRequest

PIECES = [
    b"a",
    b"b",
    b"ab",
    b"aa",
    b" ",
    b"(",
    b")",
    b"1",
    b"+",
    b"\xc3",
    b"\xa9",
    b"\xc3\xa9",
    b"\xe4\xbd",
    b"",
    b"ba",
    b"\xa0",
    b"\xff",
]
END = 13


def vocabulary() -> Vocabulary:
    made = Vocabulary(len(PIECES), PIECES.__getitem__, END.__eq__)
    made.prepare()
    return made


def followed(grammar: str) -> MachineConstraint:
    return MachineConstraint(GrammarMachine(*read_gbnf(grammar), vocabulary(), MachineMemory()))


def said(
    grammar: str, text: str, takes: Callable[[Constraints, Sampling, str], bool], constraints: Constraints
) -> bool:
    return takes(constraints, Sampling(grammar=grammar), text)


GRAMMARS = {
    "words": ('root ::= "yes" | "no"', ["yes", "no"], ["y", "yesno", ""]),
    "nothing": ('root ::= ""', [""], ["a"]),
    "recursion": ('root ::= "(" root ")" | "x"', ["x", "((x))"], ["((x)", "()"]),
    "greed": ('root ::= b "end"\nb ::= "(" b ")" | [a-z]+', ["fooend", "(x)end", "endend"], ["end"]),
    "counts": ('root ::= "a"{2} [b-d]{1,2} "e"{0,1} ("f" "g"){2,}', ["aabfgfg", "aabdefgfgfg"], ["abfgfg", "aabfg"]),
    "sets": (r'root ::= [^a-c\]"] [a-] [\x41-\u0043] .', ["daA\n", "--B!"], ["aaAx", "da", "dbAx"]),
    "other scripts": ('root ::= [я-ѿ]+ "é" [^é]', ["яѿéx", "ѿé你"], ["aé!", "яéé"]),
    "lines": ('root ::= a # the first\n\n  | b\na ::=\n  (\n "x"\n | "y"\n )\nb ::= "z"', ["x", "y", "z"], ["xy"]),
    "an empty choice": ('root ::= "a" |', ["a", ""], ["aa"]),
    "what cannot end is left out": ('root ::= "a" b | "c"\nb ::= "d" b', ["c"], ["a", "ad"]),
}


@pytest.mark.parametrize(("grammar", "good", "bad"), GRAMMARS.values(), ids=GRAMMARS)
def test_what_a_grammar_allows(
    without_guidance: Constraints,
    takes: Callable[[Constraints, Sampling, str], bool],
    grammar: str,
    good: list[str],
    bad: list[str],
) -> None:
    by_grammar = Sampling(grammar=grammar)
    assert [text for text in good if not takes(without_guidance, by_grammar, text)] == []
    assert [text for text in bad if takes(without_guidance, by_grammar, text)] == []


BAD_GRAMMARS = {
    "nothing in it": (" \n# only this", "no rule 'root'"),
    "no root": ('other ::= "a"', "no rule 'root'"),
    "an undefined rule": ('root ::= "a"\n  | foo', "line 2: there is no rule 'foo'"),
    "a rule twice": ('root ::= "a"\nroot ::= "b"', "line 2: there is a rule 'root' already"),
    "no rule at all": ("yes | no", "line 1: a rule begins"),
    "an open string": ('root ::= "a', "cannot read"),
    "an open parenthesis": ('root ::= ("a"', "not closed"),
    "an open parenthesis before a rule": ('root ::= ("a"\nb ::= "c"', "not closed"),
    "a closed parenthesis": ('root ::= "a")', "do not match"),
    "nothing to repeat": ("root ::= * \n", "nothing to repeat"),
    "a bad escape": (r'root ::= "\q"', "cannot read"),
    "a huge count": ('root ::= "a"{99999999999}', "cannot read"),
    "a large count": ('root ::= "a"{999999999}', "more than"),
    "a count down": ('root ::= "a"{3,2}', "counts down"),
    "depth": ("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000, "nested deeper"),
    "left recursion": ('root ::= root "a" | "b"', "left recursion"),
    "indirect left recursion": ('root ::= x "a" | "b"\nx ::= e root\ne ::= ""', "left recursion"),
    "empty repetition": ('root ::= ("")*', "left recursion"),
    "a token by number": ("root ::= [a-z] !<[7]> root", "cannot read"),
    "NUL": ('root ::= "a"\x00', "cannot read"),
    "an empty set": ("root ::= [z-a]", "allows no text"),
    "no end": ('root ::= "a" root', "allows no text"),
    "many repetitions": ("root ::= " + "[a]{0,2000} " * 4000, "more than"),
    "many ways at once": ("root ::= " + '"a"? ' * 9_000, "more than"),
    "ways without number": (
        "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)) + '\nr40 ::= "a" | ""',
        "more than",
    ),
}


@pytest.mark.parametrize(("text", "why"), BAD_GRAMMARS.values(), ids=BAD_GRAMMARS)
def test_a_bad_grammar_is_refused_with_what_is_wrong(constraints: Constraints, text: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        constraints.check(Sampling(grammar=text))


@pytest.mark.parametrize("field", ["grammar", "json_schema"])
def test_too_much_text_is_refused_unread(field: str) -> None:
    for text in ("", "x" * (MAX_GRAMMAR + 1)):
        with pytest.raises(ValueError, match=f"{field} must have 1 to"):
            Sampling(**{field: text})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not both"):
        Sampling(grammar='root ::= "a"', json_schema="{}")


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= [ab]* "a"',
        'root ::= ("(" root ")" | "a")',
        "root ::= [é-ü你]+",
        r"root ::= [^\x00]*",
        'root ::= ("aa" | "b")+',
    ],
)
def test_a_mask_has_the_tokens_that_are_accepted_and_no_others(grammar: str) -> None:
    rng = random.Random(1)
    for _ in range(30):
        constraint, before = followed(grammar), []
        for _ in range(6):
            mask = whole(constraint.allowed())
            for token in range(len(PIECES)):
                other = followed(grammar)
                assert all(other.accept(known) for known in before)
                assert other.accept(token) == mask[token], (grammar, before, PIECES[token])
            going_on = [int(token) for token in np.flatnonzero(mask) if token != END]
            if not going_on:
                break
            before.append(rng.choice(going_on))
            assert constraint.accept(before[-1])


def test_a_token_that_is_not_allowed_changes_nothing() -> None:
    constraint = followed('root ::= "aab"')
    assert constraint.accept(3) and not constraint.accept(0) and not constraint.accept(END)
    assert constraint.accept(1) and constraint.accept(END)


def test_a_character_may_come_in_two_tokens_but_not_by_half() -> None:
    constraint = followed('root ::= "é"?')
    assert constraint.accept(END) and constraint.accept(9)
    assert not constraint.accept(END) and not constraint.accept(9)
    assert constraint.accept(10) and constraint.accept(END)
    assert not followed('root ::= "a" | "你"').accept(9)


def test_a_choice_of_thousands_of_words_is_followed() -> None:
    rng = random.Random(2)
    words = sorted({"".join(rng.choice("abab 1+()") for _ in range(rng.randint(3, 9))) for _ in range(5_000)})[:4_000]
    constraint = followed("root ::= (" + " | ".join(f'"{word}"' for word in words) + ') "é"')
    said = b""
    while not said.endswith("é".encode()):
        tokens = [int(token) for token in np.flatnonzero(whole(constraint.allowed()))]
        for token in range(len(PIECES)):
            if token not in tokens:
                assert not constraint.accept(token)
        token = rng.choice(tokens)
        assert constraint.accept(token)
        said += PIECES[token]
    assert said.decode().removesuffix("é") in words


def test_a_mask_that_takes_too_much_is_an_error_not_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MASK_WORK", 0)
    mask = None
    for limit in range(0, 600, 7):
        monkeypatch.setattr(machine, "MAX_MASK_WORK", limit)
        constraint = followed('root ::= [ab]{0,9} "(" [ab1]+ ")"')
        try:
            mask = whole(constraint.allowed())
        except TooComplex as error:
            assert "too ambiguous" in error.message
            continue
        assert mask.tolist() == whole(followed('root ::= [ab]{0,9} "(" [ab1]+ ")"').allowed()).tolist()
    assert mask is not None and mask[0] and not mask[END]


def test_an_answer_that_no_token_continues_is_given_up() -> None:
    constraint = followed('root ::= "1x"')
    assert constraint.accept(7)
    with pytest.raises(TooComplex, match="no token"):
        whole(constraint.allowed())


def test_a_grammar_that_can_be_read_in_ever_more_ways_ends_with_an_error_that_says_so() -> None:
    """After n tokens it can be read in 2**n ways, and all of them are carried along. What else is allowed then would
    not be what the model wants to say, so the answer is not bent that way."""
    constraint = followed('root ::= s\ns ::= "a" s "b" | "a" s " " | "1"')
    taken = 0
    with pytest.raises(TooComplex, match="can be read in more than 4096 ways"):
        for _ in range(100):
            assert constraint.accept(0)
            taken += 1
    assert 8 < taken < 20
    mask = whole(constraint.allowed())
    assert mask[0] and mask[3] and mask[7] and not mask[1]
    assert constraint.accept(7) and constraint.accept(1)


def test_what_was_found_out_is_forgotten_when_it_becomes_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_NODES", 50)
    made = GrammarMachine(*read_gbnf('root ::= "(" root ")" | "a"'), vocabulary(), MachineMemory())
    first, second = MachineConstraint(made), MachineConstraint(made)
    for _ in range(300):
        assert first.accept(5)
    assert second.accept(5) and second.accept(0) and second.accept(6) and second.accept(END)
    assert first.accept(0) and all(first.accept(6) for _ in range(300)) and first.accept(END)


@pytest.mark.parametrize("length", [2, 3])
def test_the_span_of_begun_utf8_is_what_it_can_become(length: int) -> None:
    for begun in itertools.product(
        (0xC2, 0xDF, 0xE0, 0xE4, 0xED, 0xEF), *[(0x80, 0x9F, 0xA0, 0xBF, 0x20)] * (length - 1)
    ):
        data = bytes(begun)
        assert is_start(data[0])
        if data[0] < 0xE0 and length > 2:
            continue
        low, high, complete = span(data)
        try:
            assert (low, high, complete) == (ord(data.decode()), ord(data.decode()), True)
        except (UnicodeDecodeError, TypeError):
            if low <= high and not complete:
                assert chr(low).encode().startswith(data) and chr(high).encode().startswith(data)
                assert not chr(low - 1).encode("utf-8", "surrogatepass").startswith(data) or low - 1 in range(
                    0xD800, 0xE000
                )


def test_each_limit_is_above_what_everyday_grammars_need() -> None:
    assert limits.MAX_SYMBOLS > 3 * MAX_GRAMMAR

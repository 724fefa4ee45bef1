"""Grammars and JSON schemas on the packaged model: what answers look like, and that no text ends the process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.calls import MAX_GRAMMAR, Sampling
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.json_schema import schema_gbnf
from llmaas.errors import BadRequest
from llmaas.records import Message


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(gguf, n_cells=1024, n_seqs=2, n_threads=1)
    yield engine
    engine.close()


def ask(engine: LlamaEngine, question: str, sampling: Sampling, n: int = 120) -> tuple[str, bool]:
    """The answer, and whether the model ended it."""
    tokens = engine.tokenize(engine.render([Message("user", question)], answer=True), special=True, bos=True)
    engine.drop(0, 0)
    engine.set_sampler(0, sampling, tokens)
    said = b""
    for _ in range(n):
        (token,) = engine.step([BatchItem(0, engine.length(0), tokens, 0)])
        assert token is not None
        if engine.is_end(token):
            return said.decode(), True
        said, tokens = said + engine.piece(token), [token]
    return said.decode("utf-8", "replace"), False


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_keeps_to_its_grammar_and_ends_with_it(engine: LlamaEngine, temperature: float) -> None:
    yes_no = Sampling(temperature=temperature, seed=3, grammar='root ::= "yes" | "no"')
    for question in ("Is the sea wet?", "Tell me a long story.", "2 + 2 = ?"):
        said, ended = ask(engine, question, yes_no)
        assert said in ("yes", "no") and ended


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_by_a_schema_parses_and_is_valid(engine: LlamaEngine, temperature: float) -> None:
    odd = ["two\nlines", 'a "quote"', "back\\slash", "gr\u00fc\u00df"]
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer"},
            "moods": {"type": "array", "items": {"enum": odd}, "minItems": 2, "maxItems": 3},
            "again": {"$ref": "#/$defs/flag"},
        },
        "required": ["name", "age", "moods", "again"],
        "$defs": {"flag": {"type": "boolean"}},
    }
    sampling = Sampling(temperature=temperature, seed=5, repeat_penalty=1.1, json_schema=json.dumps(schema))
    said, ended = ask(engine, "Describe a sailor as JSON.", sampling, n=300)
    found = json.loads(said)
    assert ended and list(found) == ["name", "age", "moods", "again"]
    assert isinstance(found["name"], str) and len(found["name"]) <= 20 and isinstance(found["age"], int)
    assert set(found["moods"]) <= set(odd) and 2 <= len(found["moods"]) <= 3 and isinstance(found["again"], bool)


def test_every_value_of_an_enum_can_be_said_as_json(engine: LlamaEngine) -> None:
    for value in ["two\nlines", 'a "quote"', "back\\slash", "\r\u0001", [1, {"a": None}]]:
        said, ended = ask(engine, "Say it.", Sampling(json_schema=json.dumps({"const": value})))
        assert json.loads(said) == value and ended


def test_a_grammar_that_allows_everything_changes_nothing(engine: LlamaEngine) -> None:
    question = "Tell me about the sea."
    for hot in ({}, {"temperature": 0.8, "seed": 4}):
        free = ask(engine, question, Sampling(**hot), 40)  # type: ignore[arg-type]
        assert ask(engine, question, Sampling(**hot, grammar=r"root ::= [^\x00]*"), 40) == free  # type: ignore[arg-type]


def test_penalties_change_what_a_grammar_lets_through(engine: LlamaEngine) -> None:
    letters = "root ::= [a-c]+"
    plain, _ = ask(engine, "Say a.", Sampling(grammar=letters), 12)
    other, _ = ask(engine, "Say a.", Sampling(grammar=letters, frequency_penalty=5.0), 12)
    assert plain != other and set(plain + other) <= set("abc")


def test_an_answer_ends_where_its_grammar_allows_nothing(engine: LlamaEngine) -> None:
    assert ask(engine, "Hello", Sampling(grammar="root ::= [z-a]")) == ("", True)
    assert ask(engine, "Hello", Sampling(grammar='root ::= "a" [z-a]')) == ("a", True)


BAD_GRAMMARS = {
    "nothing in it": (" \n# only this", "no rule 'root'"),
    "no root": ('other ::= "a"', "no rule 'root'"),
    "an undefined rule": ('root ::= "a"\n  | foo', "line 2: there is no rule 'foo'"),
    "no rule at all": ("yes | no", "line 1: a rule begins"),
    "an open string": ('root ::= "a', "cannot read"),
    "an open parenthesis": ('root ::= ("a"', "not closed"),
    "a closed parenthesis": ('root ::= "a")', "do not match"),
    "nothing to repeat": ("root ::= * \n", "nothing to repeat"),
    "a bad escape": (r'root ::= "\q"', "cannot read"),
    "a huge count": ('root ::= "a"{99999999999}', "cannot read"),
    "depth": ("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000, "nested deeper"),
    "left recursion": ('root ::= root "a" | "b"', "left recursion"),
    "indirect left recursion": ('root ::= x "a"\nx ::= e root\ne ::= ""', "left recursion"),
    "empty repetition": ('root ::= ("")*', "left recursion"),
    "a token by number": ("root ::= [a-z] !<[7]> root", "cannot read"),
    "NUL": ('root ::= "a"\x00', "cannot read"),
}


@pytest.mark.parametrize(("text", "why"), BAD_GRAMMARS.values(), ids=BAD_GRAMMARS)
def test_a_bad_grammar_is_refused_with_what_is_wrong(
    engine: LlamaEngine, text: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadRequest, match=why):
        engine.check_sampling(Sampling(grammar=text))
    with pytest.raises(BadRequest):
        engine.set_sampler(0, Sampling(grammar=text))
    assert capfd.readouterr().err == ""


BAD_SCHEMAS = {
    "no JSON": ("{", "JSONDecodeError"),
    "a list": ("[]", "cannot be used"),
    "an unknown type": ('{"type": "frob"}', "frob"),
    "not": ('{"not": {"type": "string"}}', "Unrecognized"),
    "a reference to the net": ('{"$ref": "https://example.org/x"}', "not allowed"),
    "a reference to nothing": ('{"$ref": "#/a"}', "resolving ref"),
    "depth": ('{"items":' * 60 + "{}" + "}" * 60, "nested deeper"),
    "JSON too deep": ("[" * 30_000, "nested too deep"),
    "a huge count": ('{"type": "string", "minLength": 1000000000}', "minLength"),
    "a huge count in a pattern": ('{"type": "string", "pattern": "^a{100000}$"}', "beyond 1000"),
    "a stray bracket": ('{"type": "string", "pattern": "^}$"}', "stray bracket"),
    "a lone surrogate": ('{"type": "string", "pattern": "^\\ud800$"}', "surrogate"),
    "no alternatives": ('{"enum": []}', "cannot use the grammar"),
}


@pytest.mark.parametrize(("text", "why"), BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
def test_a_bad_schema_is_refused_with_what_is_wrong(engine: LlamaEngine, text: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        engine.check_sampling(Sampling(json_schema=text))


@pytest.mark.parametrize("field", ["grammar", "json_schema"])
def test_too_much_text_is_refused_unread(field: str) -> None:
    for text in ("", "x" * (MAX_GRAMMAR + 1)):
        with pytest.raises(ValueError, match=f"{field} must have 1 to"):
            Sampling(**{field: text})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not both"):
        Sampling(grammar='root ::= "a"', json_schema="{}")


@pytest.mark.slow
def test_a_grammar_of_exploding_ambiguity_ends_the_answer_not_the_machine(engine: LlamaEngine) -> None:
    """After n tokens it can be read in 2**n ways, and all of them are carried along."""
    grammar = 'root ::= s\ns ::= "a " s "b" | "a " s "c" | "d"'
    begun = time.monotonic()
    said, ended = ask(engine, "Say a a a a a.", Sampling(grammar=grammar, frequency_penalty=-10.0), 60)
    assert ended and set(said) <= set("a bcd") and time.monotonic() - begun < 120


def test_schemas_of_everyday_size_are_grammars_of_everyday_size() -> None:
    schema = {"type": "object", "properties": {f"field_{i}": {"type": "string"} for i in range(60)}}
    assert len(schema_gbnf(json.dumps(schema))) < MAX_GRAMMAR // 2

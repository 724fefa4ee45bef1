"""Grammars and JSON schemas on the packaged model: what answers look like, with llguidance and without it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from bench.lib.pydantic_schemas import SCHEMAS
from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.guidance import is_installed
from llmaas.engine.constraint.machine import GrammarMachine, MachineConstraint
from llmaas.engine.constraint.port import Mask
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.errors import BadRequest
from llmaas.records import Message

needs_guidance = pytest.mark.skipif(not is_installed(), reason="llguidance is not installed")


@contextmanager
def constraints_of(engine: LlamaEngine, *, guidance: bool) -> Iterator[Constraints]:
    """The engine with llguidance or without it."""
    samplers = engine.decoder.samplers
    before, vocabulary = samplers.constraints, samplers.constraints.vocabulary
    samplers.constraints = Constraints(vocabulary, guidance=guidance)
    yield samplers.constraints
    samplers.constraints = before


def _no_mask(self: GrammarMachine, _: object) -> Generator[None, None, Mask]:
    yield from ()
    return np.zeros(self.vocabulary.n_vocab, bool)


@contextmanager
def no_tokens_allowed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MachineConstraint, "accept", lambda *_: False)
        patch.setattr(GrammarMachine, "mask", _no_mask)
        yield


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


def test_a_grammar_that_allows_nothing_is_refused(engine: LlamaEngine, capfd: pytest.CaptureFixture[str]) -> None:
    for grammar in ("root ::= [z-a]", 'root ::= "a" [z-a]', 'root ::= "a" root'):
        with pytest.raises(BadRequest, match="allows no text"):
            engine.check_sampling(Sampling(grammar=grammar))
        with pytest.raises(BadRequest):
            engine.set_sampler(0, Sampling(grammar=grammar))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("guidance", [pytest.param(True, marks=needs_guidance), False])
def test_answers_by_schemas_of_pydantic_are_valid(engine: LlamaEngine, guidance: bool) -> None:
    """All of them, and at higher temperatures, in ``bench/schemas.py --check``."""
    names = [
        "optional nested model",
        "discriminated union",
        "date and time",
        "any",
        "deeply nested",
        "list without limits",
    ]
    with constraints_of(engine, guidance=guidance):
        for seed, name in enumerate(names):
            sampling = Sampling(temperature=1.0, seed=seed, json_schema=json.dumps(SCHEMAS[name]))
            said, ended = ask(engine, f"Give an example of a {name}.", sampling, 150)
            assert not ended or jsonschema.Draft202012Validator(SCHEMAS[name]).is_valid(json.loads(said)), said


@pytest.mark.parametrize("guidance", [pytest.param(True, marks=needs_guidance), False])
def test_a_constrained_token_costs_a_part_of_a_millisecond(engine: LlamaEngine, guidance: bool) -> None:
    """0.3 ms beside what the chain itself takes; here with room for a busy machine."""
    sampling = Sampling(json_schema=json.dumps(SCHEMAS["person, closed"]))
    with constraints_of(engine, guidance=guidance) as constraints:
        constraints.check(sampling)
        times = []
        for _ in range(20):
            constraint = constraints.begin(sampling)
            assert constraint is not None
            for token in engine.tokenize('{"name": "Ann", "age": 31}', special=False, bos=False):
                begun = time.thread_time()
                assert constraint.accept(token)
                times.append(time.thread_time() - begun)
    assert statistics.median(times) < 0.0003


def test_an_answer_that_cannot_be_completed_says_so(engine: LlamaEngine) -> None:
    sampling = Sampling(grammar='root ::= "a" "b"')
    engine.check_sampling(sampling)
    tokens = engine.tokenize("Hello", special=False, bos=True)
    engine.drop(0, 0)
    engine.set_sampler(0, sampling)
    assert engine.sampler_failure(0) is None
    with no_tokens_allowed():
        (token,) = engine.step([BatchItem(0, 0, tokens, 0)])
    assert token is not None and engine.is_end(token)
    failure = engine.sampler_failure(0)
    assert isinstance(failure, BadRequest) and failure.code == "bad_request"
    engine.set_sampler(0, None)
    assert engine.sampler_failure(0) is None

"""Grammars and JSON schemas over a SentencePiece vocabulary: spaces in front of words, and tokens of one byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jsonschema
import pytest

from bench.lib.pydantic_schemas import SCHEMAS
from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.guidance import is_installed
from llmaas.engine.llama.engine import LlamaEngine
from tests.support.tiny_models import sentencepiece_tokens, write_sentencepiece_model

KINDS = [pytest.param(True, marks=pytest.mark.skipif(not is_installed(), reason="no llguidance")), False]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaEngine]:
    path = write_sentencepiece_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    engine = LlamaEngine(path, n_cells=512, n_seqs=2, n_threads=1)
    yield engine
    engine.close()


def answer(engine: LlamaEngine, sampling: Sampling, n: int = 250) -> str | None:
    """What is said by a model that would say anything; None if it does not end."""
    tokens, said = engine.tokenize("a", special=False, bos=True), b""
    engine.drop(0, 0)
    engine.check_sampling(sampling)
    engine.set_sampler(0, sampling)
    for _ in range(n):
        (token,) = engine.step([BatchItem(0, engine.length(0), tokens, 0)])
        assert token is not None
        if engine.is_end(token):
            assert engine.sampler_failure(0) is None
            return said.decode()
        said, tokens = said + engine.piece(token), [token]
    return None


def hot(seed: int, **constraint: str) -> Sampling:
    return Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed, **constraint)  # type: ignore[arg-type]


def test_pieces_are_the_bytes_that_a_token_adds_to_a_text(engine: LlamaEngine) -> None:
    vocabulary = engine.decoder.samplers.constraints.vocabulary
    vocabulary.prepare()
    kinds = dict(zip([text for text, _ in sentencepiece_tokens()], vocabulary.pieces, strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["</s>"]) == (b"", b"", b"")
    assert kinds["<0x0A>"] == b"\n" and kinds["<0xE6>"] == b"\xe6" and kinds["\u2581{"] == b" {"
    assert vocabulary.ends == [2]


@pytest.mark.parametrize("guidance", KINDS)
def test_schemas_are_kept_to(engine: LlamaEngine, guidance: bool) -> None:
    samplers = engine.decoder.samplers
    before, n_ended = samplers.constraints, 0
    samplers.constraints = Constraints(before.vocabulary, guidance=guidance)
    for seed, name in enumerate(("person, closed", "optional fields", "tuple of kinds", "union of types", "tree")):
        said = answer(engine, hot(seed, json_schema=json.dumps(SCHEMAS[name])))
        if said is not None:
            jsonschema.validate(json.loads(said), SCHEMAS[name])
            n_ended += 1
    samplers.constraints = before
    assert n_ended > 2


def test_grammars_are_kept_to(engine: LlamaEngine) -> None:
    for seed in range(5):
        said = answer(
            engine, hot(seed, grammar='root ::= ("the " | "cat" | "\u65e5\u672c" | "\u65e5\u66dc"){2,4} "\\n"')
        )
        assert said is not None and re.fullmatch("(the |cat|\u65e5\u672c|\u65e5\u66dc){2,4}\n", said)

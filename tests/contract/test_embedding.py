"""What every engine promises of embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, EmbeddingFacts, Engine
from llmaas.errors import EngineFailed
from llmaas.kv_arrays import F32
from tests.contract.support import PROSE, feed, probe, text_tokens

ROUNDING = 1e-3
"""What another way of slicing a text may change of a scalar product of its vectors."""


def facts_of(engine: Engine) -> EmbeddingFacts:
    facts = engine.embedding
    assert facts is not None
    return facts


def embedded(engine: Engine, text: str, slice_: int = 0) -> F32:
    tokens = engine.tokenize(text, special=False, bos=True)
    step = slice_ or facts_of(engine).slice_tokens
    for pos in range(0, len(tokens), step):
        vector = engine.embed(pos, tokens[pos : pos + step])
    return vector


def test_a_text_has_one_vector_of_length_one(engine: Engine) -> None:
    vector = embedded(engine, "The miller saw the sea.")
    assert vector.shape == (facts_of(engine).width,) and vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    embedded(engine, "Something else in between.")
    assert np.array_equal(vector, embedded(engine, "The miller saw the sea."))


def test_slices_of_a_text_make_the_same_vector(engine: Engine) -> None:
    whole = embedded(engine, PROSE[:400])
    assert whole @ embedded(engine, PROSE[:400], slice_=7) == pytest.approx(1, abs=ROUNDING)


def test_texts_that_mean_the_like_are_nearer_than_others(engine: Engine) -> None:
    cat, kitten, rates = (
        embedded(engine, text)
        for text in (
            "The cat sits on the mat in the kitchen.",
            "A cat is sitting on a mat in our kitchen.",
            "Inflation: 7% (1979), 8% (1980); GDP +2.5%!",
        )
    )
    assert cat @ kitten > cat @ rates + 0.05


def test_sequences_and_samplers_are_left_as_they_are(engine: Engine) -> None:
    feed(engine, 0, text_tokens(engine, 100))
    before = probe(engine)
    engine.set_sampler(1, Sampling(temperature=1.0, seed=3))
    embedded(engine, PROSE[:300])
    assert engine.length(0) == 100 and np.array_equal(before, probe(engine))
    engine.step([BatchItem(0, 100, text_tokens(engine, 3), sampler=1)])
    engine.end_embedding()
    assert engine.length(0) == 103


def test_memory_that_was_freed_is_taken_again(engine: Engine) -> None:
    vector = embedded(engine, "The miller saw the sea.")
    engine.end_embedding()
    engine.end_embedding()
    with pytest.raises(ValueError, match="next position"):
        engine.embed(5, [65])
    assert np.array_equal(vector, embedded(engine, "The miller saw the sea."))


def test_what_breaks_the_rules_is_refused_and_changes_nothing(engine: Engine) -> None:
    facts, first = facts_of(engine), text_tokens(engine, 8)
    whole = embedded(engine, PROSE[:100], slice_=8)
    tokens = engine.tokenize(PROSE[:100], special=False, bos=True)
    engine.embed(0, tokens[:8])
    for pos, wrong in (
        (3, first),
        (8, []),
        (8, [engine.info.n_vocab]),
        (8, [-1]),
        (8, [65] * (facts.slice_tokens + 1)),
    ):
        with pytest.raises(ValueError):
            engine.embed(pos, wrong)
    for pos in range(8, len(tokens), 8):
        vector = engine.embed(pos, tokens[pos : pos + 8])
    assert np.array_equal(vector, whole)


def test_a_text_may_have_as_many_tokens_as_the_limit_and_no_more(engine: Engine) -> None:
    facts = facts_of(engine)
    tokens = (text_tokens(engine) * 10)[: facts.limit]
    for pos in range(0, facts.limit, facts.slice_tokens):
        engine.embed(pos, tokens[pos : pos + facts.slice_tokens])
    with pytest.raises(ValueError, match=f"{facts.limit} tokens at most"):
        engine.embed(facts.limit, tokens[:1])
    engine.embed(0, tokens[:1])


def test_a_closed_engine_embeds_nothing(make_engine: Callable[[], Engine]) -> None:
    engine = make_engine()
    embedded(engine, "The sea.")
    engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        engine.embed(0, [65])

"""Models that make embeddings only: a random BERT against numpy, and others of which only the rules are known."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmaas.engine.base import BatchItem
from llmaas.engine.llama.embedding_engine import LlamaEmbeddingEngine
from llmaas.engine.llama.encoder import encoder_memory
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.tokenizer import Tokenizer
from llmaas.engine.llama.vocab import Vocab
from llmaas.errors import EngineFailed, ModelUnreadable, NoNumbers
from llmaas.kv_arrays import F32
from tests.support.encoder_models import (
    CLS,
    FIRST,
    LAST,
    LONGEST,
    MEAN,
    RANK,
    SEP,
    UNKNOWN,
    WIDTH,
    bert_tensors,
    bert_vector,
    write_bert,
)
from tests.support.gguf_files import BOOL
from tests.support.random_models import write_llama

TEXT = "The  miller saw the sea, walking."


def opened(path: Path, **options: int) -> LlamaEmbeddingEngine:
    return LlamaEmbeddingEngine(LlamaModel(path), n_threads=2, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_bert(tmp_path / "bert.gguf")


@pytest.fixture
def bert(path: Path) -> Iterator[LlamaEmbeddingEngine]:
    engine = opened(path)
    yield engine
    engine.close()


def embedded(engine: LlamaEmbeddingEngine, text: str = TEXT) -> F32:
    assert engine.embedding is not None and engine.embedding.end is not None
    return engine.embed(0, [*engine.tokenize(text, special=False, bos=True), engine.embedding.end])


@pytest.mark.parametrize("pooling", [MEAN, FIRST, LAST])
def test_a_bert_computes_what_numpy_does(tmp_path: Path, pooling: int) -> None:
    tensors = bert_tensors(2)
    engine = opened(write_bert(tmp_path / "m.gguf", pooling=pooling, tensors=tensors))
    tokens = [CLS, *range(20, 50), SEP]
    found = engine.embed(0, tokens)
    assert found.shape == (WIDTH,) and found.dtype == np.float32
    assert np.abs(found - bert_vector(tensors, tokens, pooling=pooling)).max() < 2e-3
    others = [bert_vector(tensors, tokens, pooling=other) for other in (MEAN, FIRST, LAST) if other != pooling]
    assert all(np.abs(found - other).max() > 0.02 for other in others)
    engine.close()


def test_without_a_word_of_pooling_it_is_the_mean(tmp_path: Path) -> None:
    tensors = bert_tensors(2)
    engine = opened(write_bert(tmp_path / "m.gguf", pooling=None, tensors=tensors))
    assert np.abs(engine.embed(0, [5, 6, 7]) - bert_vector(tensors, [5, 6, 7])).max() < 2e-3
    engine.close()


def test_what_it_is_and_how_texts_begin_and_end(bert: LlamaEmbeddingEngine) -> None:
    facts, info = bert.embedding, bert.info
    assert facts is not None and facts.whole and facts.limit == facts.slice_tokens == LONGEST and facts.end == SEP
    assert not info.writes and not info.chunkable and "embeddings only" in info.note and not info.chat_note
    tokens = bert.tokenize("The [SEP] cat", special=False, bos=True)
    assert tokens[0] == CLS and SEP not in tokens
    assert SEP in bert.tokenize("The [SEP] cat", special=True, bos=True)


def test_texts_leave_nothing_behind_and_memory_comes_back(bert: LlamaEmbeddingEngine) -> None:
    first = embedded(bert)
    embedded(bert, "the cat ate it all " * 3)
    assert np.array_equal(first, embedded(bert))
    bert.end_embedding()
    bert.end_embedding()
    bert.set_threads(1)
    assert first @ embedded(bert) == pytest.approx(1, abs=1e-5)


def test_a_text_that_is_too_long_or_comes_in_parts_is_refused(path: Path, bert: LlamaEmbeddingEngine) -> None:
    bert.embed(0, [5] * LONGEST)
    for pos, wrong in ((0, [5] * (LONGEST + 1)), (0, []), (0, [bert.info.n_vocab]), (3, [5]), (LONGEST, [5])):
        with pytest.raises(ValueError):
            bert.embed(pos, wrong)
    short = opened(path, embedding_tokens=8)
    assert short.embedding is not None and short.embedding.limit == 8
    with pytest.raises(ValueError, match="8 tokens"):
        short.embed(0, [5] * 9)
    short.close()


def test_what_needs_sequences_fails(bert: LlamaEmbeddingEngine) -> None:
    slab_calls = (lambda: bert.blank(1), lambda: bert.export(0, 0, 1), lambda: bert.begin_load(0, 0, 1))
    for call in (lambda: bert.step([BatchItem(0, 0, [5])]), lambda: bert.load_adapter("a", Path("a")), *slab_calls):
        with pytest.raises(EngineFailed, match="embeddings only"):
            call()
    assert bert.length(0) == 0
    bert.close()
    with pytest.raises(EngineFailed, match="closed"):
        bert.embed(0, [5])


def test_a_model_that_makes_embeddings_only_is_no_engine_for_text(path: Path) -> None:
    with pytest.raises(ModelUnreadable, match="embeddings only"):
        LlamaEngine(path, n_cells=256, n_seqs=1, n_threads=1)


def test_a_model_that_ranks_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(ModelUnreadable, match="it ranks texts"):
        LlamaModel(write_bert(tmp_path / "m.gguf", pooling=RANK))


def test_a_decoder_whose_tokens_see_what_follows_embeds_whole_texts(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", more={"llama.attention.causal": (BOOL, False)})
    engine = opened(path, embedding_tokens=32)
    text = list(range(3, 33))
    whole = engine.embed(0, text)
    engine.embed(0, text[::-1])
    assert np.array_equal(whole, engine.embed(0, text))
    changed = engine.embed(0, [*text[:29], 99])
    assert whole @ changed < 0.999
    engine.close()


def test_what_is_no_numbers_fails_and_harms_no_other_text(tmp_path: Path) -> None:
    tensors = bert_tensors(2)
    tensors["token_embd.weight"][9] = np.nan
    engine = opened(write_bert(tmp_path / "m.gguf", tensors=tensors))
    right = engine.embed(0, [5, 6])
    with pytest.raises(NoNumbers):
        engine.embed(0, [5, 9, 6])
    assert np.array_equal(engine.embed(0, [5, 6]), right)
    engine.close()


def test_pieces_of_a_long_text_have_the_tokens_of_the_whole(path: Path) -> None:
    model = LlamaModel(path, weights=False)
    vocab = Vocab(model.handle)
    draw = random.Random(3)
    words = ["the", "cat", "walking", "x,y", "[SEP]", "\u65e5\u672c", "\N{GRINNING FACE}", "saw   the", "\n\n"]
    text = " ".join(draw.choice(words) for _ in range(3000))
    assert Tokenizer(vocab, piece=100).tokens(text, special=False) == Tokenizer(vocab).tokens(text, special=False)


def test_an_unknown_word_beside_a_name_cuts_no_word(bert: LlamaEmbeddingEngine) -> None:
    (the,) = bert.tokenize("the", special=False, bos=False)
    tokens = bert.tokenize("[SEP] \N{GRINNING FACE} the", special=False, bos=False)
    assert tokens[-2:] == [UNKNOWN, the]


def test_white_space_is_no_part_of_a_texts_length(bert: LlamaEmbeddingEngine) -> None:
    spaced = "the" + " \n" * 5000 + "cat"
    assert bert.tokenize(spaced, special=False, bos=True, limit=8) == bert.tokenize("the cat", special=False, bos=True)


def test_the_memory_grows_with_the_longest_text(path: Path) -> None:
    assert 0 == encoder_memory(path, 0) < encoder_memory(path, 8) < encoder_memory(path, LONGEST)
    engine = opened(path, embedding_tokens=0)
    with pytest.raises(EngineFailed, match="no embeddings"):
        engine.embed(0, [5])
    engine.close()

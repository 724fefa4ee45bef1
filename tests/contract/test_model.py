"""What every engine promises of its model: identity, text, and files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmaas.engine.base import BatchItem, CellsFull, Engine
from llmaas.errors import ModelUnreadable
from llmaas.records import Message
from tests.contract.support import feed, text_tokens

# -- identity and text


def test_an_engine_says_what_it_is(engine: Engine) -> None:
    info = engine.info
    assert info.name and info.fingerprint and info.vocab
    assert info.chunkable, info.note
    assert (engine.n_cells, engine.n_seqs) == (1024, 4)
    assert 1 <= engine.max_batch <= engine.n_cells
    slab = engine.blank(3)
    assert slab.k.shape == (info.geometry.n_layer, 3, info.geometry.k_dim)
    assert slab.v.shape == (info.geometry.n_layer, 3, info.geometry.v_dim)
    assert slab.k.dtype == slab.v.dtype == np.float16


def test_two_engines_of_one_model_have_one_identity(engine: Engine, make_engine: Callable[[], Engine]) -> None:
    other = make_engine()
    assert other.info == engine.info
    other.close()


TEXTS = [
    "plain words",
    "  two  spaces\n\tand a tab ",
    "naïve façade, 猫が好き",
    "\U0001f999 \U0001f469\u200d\U0001f680!",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_tokens_make_up_the_text(engine: Engine, text: str) -> None:
    tokens = engine.tokenize(text, special=False, bos=False)
    assert b"".join(map(engine.piece, tokens)).decode("utf-8") == text
    assert not any(engine.is_end(token) for token in tokens)


def test_special_tokens_are_parsed_only_on_request(engine: Engine) -> None:
    (end,) = engine.tokenize("<|im_end|>", special=True, bos=False)
    assert engine.is_end(end)
    assert engine.piece(end) == b""
    plain = engine.tokenize("<|im_end|>", special=False, bos=False)
    assert b"".join(map(engine.piece, plain)) == b"<|im_end|>"


def test_a_rendered_chat_holds_its_messages_in_order(engine: Engine) -> None:
    chat = [
        Message("system", "Be brief."),
        Message("user", "Where is the 🐈?"),
        Message("assistant", "On the mat."),
    ]
    text = engine.render(chat, answer=False)
    assert text.index("Be brief.") < text.index("Where is the 🐈?") < text.index("On the mat.")
    asked = engine.render(chat[:2], answer=True)
    assert asked.startswith(engine.render(chat[:2], answer=False))
    assert asked.rstrip().endswith("assistant")


def test_a_token_outside_the_vocabulary_is_refused(engine: Engine) -> None:
    for token in (-1, engine.info.n_vocab):
        with pytest.raises(ValueError, match="vocabulary"):
            engine.piece(token)
        with pytest.raises(ValueError, match="vocabulary"):
            engine.step([BatchItem(0, 0, [token])])
    assert engine.length(0) == 0


# -- model files (the real engine only)


@pytest.mark.parametrize("bad", ["missing", "folder", "text", "empty", "truncated", "scrambled"])
def test_an_unreadable_model_is_named_with_its_reason(
    gguf: Path, tmp_path: Path, bad: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from llmaas.engine.llama.engine import LlamaEngine

    path = tmp_path / "model.gguf"
    whole = gguf.read_bytes()
    if bad == "folder":
        path.mkdir()
    elif bad != "missing":
        content = {
            "text": b"this is no model",
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "scrambled": whole[:64] + b"\xff" * 4096,
        }
        path.write_bytes(content[bad])
    with pytest.raises(ModelUnreadable) as caught:
        LlamaEngine(path, n_cells=256, n_threads=1)
    said = str(caught.value)
    assert str(path) in said
    assert len(said) > len(str(path)) + 20
    assert "no reason" not in said
    assert capfd.readouterr() == ("", "")


def test_an_engine_writes_nothing_to_the_terminal(gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from llmaas.engine.llama.engine import LlamaEngine

    engine = LlamaEngine(gguf, n_cells=256, n_threads=1, n_seqs=1)
    feed(engine, 0, text_tokens(engine, 8))
    with pytest.raises(CellsFull):
        engine.load(0, 8, engine.blank(250))
    engine.close()
    assert capfd.readouterr() == ("", "")


def test_with_few_cells_a_step_is_no_longer_than_they_are(gguf: Path) -> None:
    from llmaas.engine.llama.engine import LlamaEngine

    engine = LlamaEngine(gguf, n_cells=100, n_threads=1, n_seqs=2, n_batch=512)
    most = engine.max_batch
    assert most <= engine.n_cells == 256
    engine.step([BatchItem(0, 0, text_tokens(engine, most))])
    with pytest.raises(ValueError, match="a step holds"):
        engine.step([BatchItem(1, 0, text_tokens(engine, most + 1))])
    engine.close()

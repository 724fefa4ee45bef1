"""A vocabulary that is read at once is the one that is read token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmaas.engine.llama import vocab_table
from llmaas.engine.llama.lib import C, load_model
from llmaas.engine.llama.vocab import Vocab
from llmaas.engine.llama.vocab_table import read_table


def facts(vocab: Vocab) -> dict[str, object]:
    return {name: value for name, value in vars(vocab).items() if name != "handle"}


def test_the_loop_in_c_reads_what_single_calls_read(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(model_path, vocab_only=True)
    try:
        vocab = C.llama_model_get_vocab(model)
        n = int(C.llama_vocab_n_tokens(vocab))
        assert vocab_table.library() is not None
        quick, quick_facts = read_table(vocab, n), facts(Vocab(model, "smollm"))
        monkeypatch.setattr(vocab_table, "BYTES_A_TOKEN", 1)  # a room that is too small at first
        again = read_table(vocab, n)
        monkeypatch.setattr(vocab_table, "library", lambda: None)
        slow, slow_facts = read_table(vocab, n), facts(Vocab(model, "smollm"))
    finally:
        C.llama_model_free(model)
    assert quick.texts == slow.texts == again.texts
    assert np.array_equal(quick.attributes, slow.attributes)
    assert quick.lengths().tolist() == [len(text) for text in slow.split()] and len(slow.split()) == n
    assert quick_facts == slow_facts

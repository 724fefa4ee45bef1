"""The name of a model's tokenizer: the same for a repaired file, and for nothing else."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from llmaas.engine.llama.model import LlamaModel
from tests.support.altered_model import altered, another_tokenizer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer.ggml.eos_token_id", struct.pack("<I", 0)),
        ("tokenizer.ggml.bos_token_id", struct.pack("<I", 2)),
        ("tokenizer.ggml.add_bos_token", b"\x01"),
    ],
)
def test_a_repaired_file_has_the_same_tokenizer_and_other_weights(
    gguf: Path, tmp_path: Path, name: str, value: bytes
) -> None:
    model = LlamaModel(gguf)
    with altered(gguf, tmp_path / "model", name, value) as path:
        repaired = LlamaModel(path)
        assert repaired.vocab_fingerprint() == model.vocab_fingerprint()
        assert repaired.former_vocab_fingerprint() != model.former_vocab_fingerprint()
        assert repaired.weights_fingerprint() != model.weights_fingerprint(), "metadata may change what KV means"


def test_another_text_of_one_token_is_another_tokenizer(gguf: Path, tmp_path: Path) -> None:
    with another_tokenizer(gguf, tmp_path / "model") as path:
        assert LlamaModel(path).vocab_fingerprint() != LlamaModel(gguf).vocab_fingerprint()


def test_the_former_name_is_that_of_version_0_1(gguf: Path) -> None:
    assert LlamaModel(gguf).former_vocab_fingerprint() == "1809e897e1d87f306c268c31dd7b569d"

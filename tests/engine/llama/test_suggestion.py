"""What a model's file suggests for sampling, read by the real llama.cpp."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llmaas.engine.llama.lib import C
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.suggestion import KEYS, suggested_sampling
from tests.support.gguf_files import with_metadata

QWEN = {
    "general.sampling.temp": 0.7,
    "general.sampling.top_k": 20,
    "general.sampling.top_p": 0.8,
    "general.sampling.penalty_repeat": 1.05,
}
"""As llama.cpp's converter writes them for Qwen2.5."""


def suggested(gguf: Path, tmp_path: Path, values: dict[str, float | str]) -> dict[str, float]:
    model = LlamaModel(with_metadata(gguf, tmp_path / "m.gguf", values))
    return suggested_sampling(model.handle)


def test_the_keys_are_those_that_llama_cpp_names() -> None:
    known = {C.llama_model_meta_key_str(number).decode() for number in range(12)}
    assert set(KEYS.values()) < known


def test_a_model_that_suggests_nothing_has_no_suggestion(gguf: Path) -> None:
    model = LlamaModel(gguf)
    assert suggested_sampling(model.handle) == {}


def test_what_the_file_says_is_found_under_the_names_of_a_call(gguf: Path, tmp_path: Path) -> None:
    found = suggested(gguf, tmp_path, {**QWEN})
    assert found == {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repeat_penalty": 1.05}
    assert type(found["top_k"]) is int


def test_what_no_call_may_ask_for_is_left_out(gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd: dict[str, float | str] = {
        "general.sampling.temp": float("nan"),
        "general.sampling.top_p": 7.0,
        "general.sampling.min_p": "much",
        "general.sampling.top_k": -1,
        "general.sampling.penalty_last_n": -1,
    }
    with caplog.at_level(logging.WARNING):
        assert suggested(gguf, tmp_path, odd) == {"top_k": 0, "penalty_last_n": 4096}
    assert [r.getMessage().split(",")[0] for r in caplog.records if "which is not used" in r.getMessage()] == [
        "the model's file says general.sampling.temp = nan",
        "the model's file says general.sampling.top_p = 7.000000",
        "the model's file says general.sampling.min_p = much",
    ]

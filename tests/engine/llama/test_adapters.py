"""LoRA adapters and llama.cpp: what must not reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.lib.adapter_files import SMOLLM2, write_gguf
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.errors import AdapterMismatch, AdapterUnreadable


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Iterator[LlamaEngine]:
    made = LlamaEngine(gguf, n_cells=256, n_seqs=2, n_threads=1)
    yield made
    made.close()


def make_wrong_type(path: Path) -> Path:
    return write_gguf(path, 1, meta={"general.type": 7})


def make_wrong_alpha(path: Path) -> Path:
    return write_gguf(path, 1, meta={"adapter.lora.alpha": "8"})


def make_empty(path: Path) -> Path:
    return write_gguf(path, 1, weights={})


def make_wrong_shape(path: Path) -> Path:
    return write_gguf(path, 1, weights={"blk.0.attn_v.weight": (576, 576)})


def make_unknown_weight(path: Path) -> Path:
    return write_gguf(path, 1, weights={"blk.99.attn_v.weight": (576, 192)})


def make_too_deep(path: Path) -> Path:
    return write_gguf(path, 1, weights=dict([next(iter(SMOLLM2.items()))]), extra=(2,))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (make_wrong_type, AdapterUnreadable),
        (make_wrong_alpha, AdapterUnreadable),
        (make_empty, AdapterUnreadable),
        (make_wrong_shape, AdapterMismatch),
        (make_unknown_weight, AdapterMismatch),
        (make_too_deep, AdapterMismatch),
    ],
)
def test_files_that_llama_cpp_would_end_the_process_over_are_refused(
    engine: LlamaEngine, tmp_path: Path, make: Callable[[Path], Path], error: type[Exception]
) -> None:
    with pytest.raises(error):
        engine.load_adapter("bad", make(tmp_path / "bad.gguf"))
    assert engine.step([BatchItem(0, 0, [1, 2, 3])]) == [None]
    engine.drop(0, 0)

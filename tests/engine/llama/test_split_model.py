"""A model in several files, loaded and computed for real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.config.models import size_bytes
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.model_file import ModelFiles
from llmaas.errors import ModelChanged, ModelUnreadable
from llmaas.kv_arrays import F32
from tests.support.random_models import write_llama
from tests.support.split_models import split_model

PROMPT = list(range(3, 40))


def opened(path: Path) -> LlamaEngine:
    return LlamaEngine(path, n_cells=256, n_seqs=2, n_threads=1)


def logits(engine: LlamaEngine, seq: int = 0) -> F32:
    engine.set_sampler(0, Sampling())
    engine.step([BatchItem(seq, 0, PROMPT, 0)])
    return engine.logits()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "m.gguf")


@pytest.mark.parametrize("bare_first", [False, True])
def test_it_computes_what_the_model_in_one_file_does(whole: Path, bare_first: bool) -> None:
    parts = split_model(whole, 3, bare_first=bare_first)
    one, split = opened(whole), opened(parts[0])
    assert np.array_equal(logits(one), logits(split))
    assert split.info.size_bytes == one.info.size_bytes < size_bytes(parts[0])
    assert split.info.vocab == one.info.vocab
    one.close()
    split.close()


def test_parking_gives_the_pages_of_all_files_back(whole: Path) -> None:
    parts = split_model(whole, 3)
    engine = opened(parts[0])
    before = logits(engine)
    bare = sum(part.stat().st_size // 4096 for part in parts) - len(parts)
    assert engine.park() >= bare * 4096 // 2
    engine.drop(0, 0)
    assert np.array_equal(before, logits(engine))
    engine.close()


def test_the_fingerprint_is_of_all_files(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_llama(tmp_path / "other" / "m.gguf", seed=2)
    names = set()
    for path in (whole, other):
        parts = split_model(path, 2, bare_first=True)
        files = ModelFiles(parts[0])
        names.add(files.fingerprint)
        files.close()
    assert len(names) == 2, "the first files are the same, byte for byte"
    assert split_model(whole, 2, bare_first=True)[0].read_bytes() == (tmp_path / "other" / parts[0].name).read_bytes()


def test_a_part_that_is_missing_replaced_or_cut_is_noticed(whole: Path) -> None:
    parts = split_model(whole, 3)
    files = ModelFiles(parts[0])
    copy = parts[2].with_suffix(".copy")
    copy.write_bytes(parts[2].read_bytes())
    copy.rename(parts[2])
    with pytest.raises(ModelUnreadable, match=f"{parts[2].name} was replaced"):
        files.check_path()
    files.check()
    with parts[1].open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ModelChanged, match=parts[1].name):
        files.check()
    files.close()
    parts[1].unlink()
    with pytest.raises(ModelUnreadable, match=parts[1].name):
        opened(parts[0])

"""A model whose pages are locked in RAM, and one whose pages are not."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from llmaas.engine.llama.model import LlamaModel
from llmaas.model_files.page_cache import resident_share
from llmaas.model_files.tier import tier_of
from llmaas.weights_tier import WeightsTier
from tests.support.random_models import write_llama

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system tells no pages")


def share_of(path: Path) -> float | None:
    with path.open("rb") as file:
        return resident_share(file)


def test_a_held_model_keeps_its_pages_though_the_system_asks_for_them(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if limit != resource.RLIM_INFINITY and limit < 2 * path.stat().st_size:
        pytest.skip("this process may not lock so much memory")
    model = LlamaModel(path, held=True)
    assert model.held and model.weights_in is WeightsTier.HELD
    assert model.park() == 0
    model.files.drop_pages()
    assert share_of(path) == 1.0 and tier_of(path) is WeightsTier.PAGES, "no other process knows that it is held"


def test_a_model_that_is_not_held_is_in_the_page_cache_and_may_leave(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf")
    model = LlamaModel(path)
    assert not model.held and model.weights_in is WeightsTier.PAGES
    assert model.park() > 0.9 * path.stat().st_size  # the file's head is not mapped


def test_a_model_that_may_not_be_held_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.engine.llama.model.hold_pages", lambda paths: False)
    model = LlamaModel(write_llama(tmp_path / "m.gguf"), held=True)
    assert not model.held and model.weights_in is WeightsTier.PAGES and model.park() > 0

"""Where the weights of a model are that no process uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmaas.model_files import tier
from llmaas.model_files.tier import tier_of
from llmaas.weights_tier import WeightsTier

SIZE = 1 << 20


def in_pages(path: Path) -> Path:
    path.write_bytes(b"x" * SIZE)
    return path


def on_disk(path: Path) -> Path:
    """A file of which nothing has been read."""
    path.touch()
    os.truncate(path, SIZE)
    return path


def test_a_file_is_nowhere_on_disk_or_in_the_page_cache(tmp_path: Path) -> None:
    assert tier_of(tmp_path / "m.gguf") is WeightsTier.NONE
    assert tier_of(tmp_path) is WeightsTier.NONE, "a folder is no model"
    assert tier_of(on_disk(tmp_path / "m.gguf")) is WeightsTier.DISK
    assert tier_of(in_pages(tmp_path / "m.gguf")) is WeightsTier.PAGES


def test_a_split_model_is_where_the_farthest_of_its_files_is(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    in_pages(first)
    assert tier_of(first) is WeightsTier.NONE
    on_disk(second)
    assert tier_of(first) is WeightsTier.DISK
    in_pages(second)
    assert tier_of(first) is WeightsTier.PAGES


def test_what_the_system_does_not_tell_counts_as_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier, "missing_bytes", lambda path: None)
    assert tier_of(in_pages(tmp_path / "m.gguf")) is WeightsTier.DISK

"""The benches of models, as far as they can be tried without a large one."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from bench import one_model
from bench.lib.load_once import ours
from llmaas.model_files.load_memo import LoadMemo
from tests.support.random_models import write_llama


def test_a_held_model_is_measured_with_all_of_its_pages_in_ram(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if limit != resource.RLIM_INFINITY and limit < 2 * model.stat().st_size:
        pytest.skip("this process may not lock so much memory")
    found = ours(model, 1, LoadMemo(tmp_path / "loads.json"), then="held")
    assert found["held"] and found["resident_parked"] == 1.0 and found["back"] > 0


def test_without_a_clone_the_version_before_is_refused_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_model, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(RuntimeError, match=f"a clone of the repository with the commit {one_model.BEFORE}"):
        one_model.former(tmp_path / "before")

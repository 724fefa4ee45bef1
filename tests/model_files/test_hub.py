"""Files of Hugging Face come through its own package, which a test replaces."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmaas.errors import ConfigError
from llmaas.model_files.download import DownloadFailed
from llmaas.model_files.hub import load_from_hub
from llmaas.model_files.source import HubFile


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """The calls of ``hf_hub_download``."""
    calls: list[dict[str, Any]] = []
    package, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")

    def hf_hub_download(**options: Any) -> str:
        calls.append(options)
        if "secret" in options["filename"]:
            raise errors.HfHubHTTPError("401 Client Error.\nmore")
        return str(options["local_dir"] / options["filename"])

    errors.HfHubHTTPError = type("HfHubHTTPError", (Exception,), {})  # type: ignore[attr-defined]
    errors.LocalEntryNotFoundError = type("LocalEntryNotFoundError", (Exception,), {})  # type: ignore[attr-defined]
    package.hf_hub_download = hf_hub_download  # type: ignore[attr-defined]
    monkeypatch.setattr("llmaas.model_files.hub.find_spec", lambda name: package)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return calls


def test_a_file_is_asked_for_by_repository_and_revision(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert load_from_hub(HubFile("o/r", "sub/m.gguf", "v2"), tmp_path) == tmp_path / "sub/m.gguf"
    assert asked == [{"repo_id": "o/r", "filename": "sub/m.gguf", "revision": "v2", "local_dir": tmp_path}]


def test_all_files_of_a_split_model_are_loaded(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    found = load_from_hub(HubFile("o/r", "m-00001-of-00002.gguf"), tmp_path)
    assert found.name == "m-00001-of-00002.gguf"
    assert [each["filename"] for each in asked] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


def test_what_the_package_refuses_is_said_in_one_line(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"401 Client Error\.$"):
        load_from_hub(HubFile("o/r", "secret.gguf"), tmp_path)


def test_without_the_package_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.model_files.hub.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="huggingface_hub"):
        load_from_hub(HubFile("o/r", "m.gguf"), tmp_path)

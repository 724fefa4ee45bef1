"""Which sources of files are taken."""

from __future__ import annotations

import pytest

from llmaas.errors import BadRequest
from llmaas.model_files.source import HubFile, WebFile, source_of


def test_paths_addresses_and_repositories_are_told_apart() -> None:
    assert source_of("models/m.gguf") is None and source_of("/hf/m.gguf") is None
    assert source_of("https://example.org/a/m%2D1.gguf?download=true") == WebFile(
        "https://example.org/a/m%2D1.gguf?download=true"
    )
    assert WebFile("https://example.org/a/m%2D1.gguf?download=true").file_name == "m-1.gguf"
    assert source_of("hf:o/r/sub/m.gguf@main") == HubFile("o/r", "sub/m.gguf", "main")
    assert HubFile("o/r", "sub/m.gguf").file_name == "m.gguf"
    assert isinstance(source_of("http://localhost:8000/m.gguf"), WebFile)


@pytest.mark.parametrize(
    "text",
    [
        "http://example.org/m.gguf",
        "ftp://example.org/m.gguf",
        "file:///etc/m.gguf",
        "https://example.org/",
        "https://example.org/m.bin",
        "https://example.org/..gguf",
        "https://example.org/%2e%2e%2fm.gguf/",
        "https://user:secret@example.org/m.gguf",
        "https://example.org/m-00001-of-00002.gguf",
        "hf:owner/m.gguf",
        "hf:owner/repo/m.bin",
        "hf:owner/repo/../m.gguf",
        "hf:owner/repo/a b.gguf",
        "hf:",
    ],
)
def test_what_is_not_surely_a_model_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        source_of(text)

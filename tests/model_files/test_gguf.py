"""What a GGUF file says of itself, and files that are cut, damaged or no model."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.config.models import parts_of
from llmaas.errors import ModelUnreadable
from llmaas.model_files.gguf import examine_file, examine_files
from tests.support.gguf_files import I32, LIST, TEXT, U32, Meta, write_model
from tests.support.random_models import write_llama
from tests.support.split_models import split_model

META: Meta = {
    "general.architecture": (TEXT, "llama"),
    "general.name": (TEXT, "Small"),
    "llama.context_length": (U32, 2048),
    "tokenizer.ggml.tokens": (LIST, (TEXT, ["a", "bc", "def"])),
    "tokenizer.ggml.token_type": (LIST, (I32, [1, 1, 1])),
    "long": (TEXT, "x" * 5000),
}


def model(path: Path, shape: tuple[int, ...] = (8, 16)) -> Path:
    return write_model(path, META, {"one": np.zeros(shape, np.float32), "two": np.ones((4,), np.float32)})


def test_a_file_says_what_it_is_and_how_long(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    facts, size = examine_files(path)
    assert (facts.architecture, facts.title, facts.context_length, facts.n_tensors) == ("llama", "Small", 2048, 2)
    assert "tokenizer.ggml.tokens" not in facts.meta and "long" not in facts.meta
    assert size == path.stat().st_size and facts.needed_bytes <= size < facts.needed_bytes + 32


def test_the_packaged_model_is_whole(model_path: Path) -> None:
    facts, size = examine_files(model_path)
    assert facts.architecture == "llama" and facts.needed_bytes == size == model_path.stat().st_size


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.97])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, share: float) -> None:
    path = model(tmp_path / "m.gguf", (64, 64))
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ModelUnreadable):
        examine_files(path)


def test_what_is_no_file_or_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no model")
    os.mkfifo(tmp_path / "fifo")
    for name, why in (("text", "begins with"), ("fifo", "regular"), (".", "directory"), ("gone", "no model file")):
        with pytest.raises(ModelUnreadable, match=why):
            examine_files(tmp_path / name)


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<4sIQQ", b"GGUF", 1, 0, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 60),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 62),
        struct.pack("<4sIQQQcIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 8, 1 << 62),
        struct.pack("<4sIQQQcIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 9, 1),
        struct.pack("<4sIQQQcI", b"GGUF", 3, 0, 1, 1, b"k", 77),
        struct.pack("<4sIQQQcI", b"GGUF", 3, 1, 0, 1, b"t", 200),
    ],
)
def test_heads_that_announce_nonsense_are_refused_at_once(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(head + bytes(256))
    with pytest.raises(ModelUnreadable, match="no GGUF model file"):
        examine_file(path)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("f") / "m.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + data)
    try:
        facts, _ = examine_file(path)
    except ModelUnreadable:
        return
    assert facts.needed_bytes >= 24


def test_a_model_in_several_files_is_all_of_them(tmp_path: Path) -> None:
    first = tmp_path / "m-00001-of-00003.gguf"
    parts = parts_of(first)
    assert [part.name for part in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        model(part)
    _, size = examine_files(first)
    assert size == sum(part.stat().st_size for part in parts)
    with pytest.raises(ModelUnreadable, match="not the first"):
        examine_files(parts[1])
    parts[2].unlink()
    with pytest.raises(ModelUnreadable, match="part 3 of 3"):
        examine_files(first)


def test_files_that_are_not_of_one_model_are_refused(tmp_path: Path) -> None:
    small, large = (write_llama(tmp_path / f"{name}.gguf", layers=n) for name, n in (("small", 2), ("large", 3)))
    parts, others = split_model(small, 3), split_model(large, 3)
    facts, size = examine_files(parts[0])
    assert facts.title == "random llama" and size == sum(part.stat().st_size for part in parts)
    others[1].replace(parts[1])
    with pytest.raises(ModelUnreadable, match="tensors together, and the model has"):
        examine_files(parts[0])
    others[2].replace(parts[1])
    with pytest.raises(ModelUnreadable, match="its name says something else") as refused:
        examine_files(parts[0])
    assert "NAME-00001-of-00003.gguf" in refused.value.hint
    alone = parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(ModelUnreadable, match="one of 3 files"):
        examine_files(alone)

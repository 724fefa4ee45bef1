from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llmaas.config.models import check, parts_of, size_bytes
from llmaas.errors import ModelUnreadable


def test_a_model_is_a_regular_file_that_begins_as_gguf_does(tmp_path: Path) -> None:
    model, link, text, fifo = (tmp_path / name for name in ("model", "link", "text", "fifo"))
    model.write_bytes(b"GGUF and more")
    link.symlink_to(model)
    text.write_text("no model")
    os.mkfifo(fifo)
    check(model)
    check(link)
    for path, why in (
        (text, "not a GGUF"),
        (fifo, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "is a directory"),
        (tmp_path / "gone", "there is no model file"),
    ):
        with pytest.raises(ModelUnreadable, match=why):
            check(path)


def test_a_model_on_storage_that_cannot_be_mapped_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    (tmp_path / "model").write_bytes(b"GGUF and more")
    monkeypatch.setattr("llmaas.config.models.mmap.mmap", refuse)
    with pytest.raises(ModelUnreadable, match="cannot be mapped") as caught:
        check(tmp_path / "model")
    assert "local disk" in caught.value.hint


def test_a_model_in_several_files_must_be_whole(tmp_path: Path) -> None:
    parts = parts_of(tmp_path / "m-00001-of-00003.gguf")
    for part in parts:
        part.write_bytes(b"GGUF and more")
    check(parts[0])
    assert size_bytes(parts[0]) == 3 * 13
    with pytest.raises(ModelUnreadable, match="not the first") as refused:
        check(parts[1])
    assert parts[0].name in refused.value.hint
    with pytest.raises(ModelUnreadable, match="not the first"):
        check(tmp_path / "m-00001-of-00000.gguf")
    parts[1].write_bytes(b"text")
    with pytest.raises(ModelUnreadable, match=r"m-00002-of-00003\.gguf is not a GGUF"):
        check(parts[0])
    parts[1].unlink()
    with pytest.raises(ModelUnreadable, match="part 2 of 3") as refused:
        check(parts[0])
    assert "one folder" in refused.value.hint

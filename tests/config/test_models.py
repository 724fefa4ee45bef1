from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llmaas.config.models import check
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

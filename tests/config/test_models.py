from __future__ import annotations

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

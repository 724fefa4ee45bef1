"""What is told of a model whose weights are being read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llmaas.calls import Loading
from llmaas.cli.load_ahead import WeightReads
from llmaas.config.sources import load
from llmaas.model_files.reads import FileReads
from tests.support.random_models import write_llama


def test_it_is_told_while_a_read_runs_and_not_before_or_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr("llmaas.cli.load_ahead.lower_io_priority", lambda: go_on.wait(20))
    monkeypatch.setattr(FileReads, "left_s", 1.5)
    model = write_llama(tmp_path / "m.gguf")
    reads = WeightReads(load({"model": str(model), "data_dir": str(tmp_path)}, {"HOME": str(tmp_path)}).config)
    assert reads.loading("m") is None
    reads.start()
    assert reads.loading("m") == Loading("m", 1.5)
    go_on.set()
    reads.close()
    assert reads.loading("m") is None

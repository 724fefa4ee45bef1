"""What is told of a model whose weights are being read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llmaas.calls import Loading
from llmaas.cli.load_ahead import WeightReads, load_memo
from llmaas.config.sources import load
from llmaas.model_files.load_memo import DiskFigures, ReadPlan
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


def test_how_long_it_takes_until_they_are_back_follows_from_what_is_missing_and_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_llama(tmp_path / "m.gguf")
    config = load({"model": str(model), "data_dir": str(tmp_path / "data")}, {"HOME": str(tmp_path)}).config
    reads, missing = WeightReads(config), 3_000_000
    monkeypatch.setattr("llmaas.cli.load_ahead.missing_bytes", lambda path: missing)
    assert reads.back_s() is None, "nothing is known of the disk"
    load_memo(config).keep_disk(model.stat().st_dev, DiskFigures(ReadPlan(4, 1 << 20), 1_500_000.0))
    assert reads.back_s() == 2.0
    missing = 0
    assert reads.back_s() == 0.0
    model.unlink()
    assert reads.back_s() is None

"""The command line and a model in several files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.client import Client
from llmaas.cli.doctor.model import check_model
from llmaas.cli.load_ahead import WeightReads
from llmaas.cli.main import main
from llmaas.config.sources import load
from llmaas.model_files.load_memo import LoadMemo
from llmaas.model_files.reads import FileReads
from llmaas.records import Message
from tests.cli.conftest import Daemon
from tests.support.random_models import write_llama
from tests.support.split_models import split_model

OK, FAILED = 0, 1


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return split_model(write_llama(tmp_path / "m.gguf"), 3, bare_first=True)


def test_adding_the_first_file_takes_all(
    bare_environ: Path, parts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "add", "m", str(parts[0])]) == OK
    capsys.readouterr()
    assert main(["model", "show", "m", "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["size_bytes"] == sum(part.stat().st_size for part in parts)
    assert main(["model", "add", "n", str(parts[1])]) == FAILED
    assert f"Give the first, {parts[0].name}" in capsys.readouterr().err
    parts[2].unlink()
    for args in (["model", "add", "n", str(parts[0])], ["model", "show", "m"]):
        assert main(args) == FAILED
        assert "part 3 of 3" in capsys.readouterr().err


def test_all_files_are_read_ahead(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[list[Path]] = []

    class Seen(FileReads):
        def __init__(self, paths: Sequence[Path], memo: LoadMemo, **options: Any) -> None:
            wanted.append(list(paths))
            super().__init__(paths, memo, **options)

    monkeypatch.setattr("llmaas.cli.load_ahead.FileReads", Seen)
    reads = WeightReads(load({"model": str(parts[0]), "data_dir": str(tmp_path)}, {"HOME": str(tmp_path)}).config)
    reads.start()
    reads.close()
    assert wanted == [parts]


def test_a_daemon_serves_it_and_says_what_is_missing(tmp_path: Path, parts: list[Path]) -> None:
    daemon = Daemon(tmp_path, more=("--model", str(parts[0]), "--cells", "512"))
    daemon.start()
    try:
        with Client(daemon.socket, app="test") as client:
            client.create(name="x")
            assert client.generate("x", [Message("user", "the cat")], max_tokens=4).done.n_generated
    finally:
        assert daemon.stop() == OK
    config = load({"model": str(parts[0])}, {"HOME": str(tmp_path)}).config
    assert "random llama" in next(check_model(config)).text
    parts[1].unlink()
    with pytest.raises(pytest.fail.Exception, match="part 2 of 3"):
        daemon.start()

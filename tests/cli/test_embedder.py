"""The command line and a model that makes embeddings only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.cli.doctor.model import check_model
from llmaas.cli.main import main
from llmaas.config.sources import load
from tests.cli.conftest import Daemon, Run
from tests.support.encoder_models import RANK, WIDTH, write_bert

OK = 0


def test_the_doctor_says_what_it_is_and_what_it_takes(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert.gguf")
    config = load({"model": str(path), "data_dir": str(tmp_path / "data")}, {"HOME": str(tmp_path)}).config
    first, second, memory = check_model(config)
    assert first.level == "ok" and "makes embeddings only (bert)" in first.text and "chat" in first.text
    assert f"up to 64 tokens, {WIDTH} values" in second.text
    assert "embeddings" in memory.text and "cells" not in memory.text and "pool" not in memory.text
    idle = load({"model": str(path), "embedding_tokens": "0"}, {"HOME": str(tmp_path)}).config
    assert [f.hint for f in check_model(idle) if f.level == "warn"] == ["Raise --embedding-tokens."]


def test_the_registry_says_what_a_model_is(
    bare_environ: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "add", "words", str(write_bert(tmp_path / "bert.gguf"))]) == OK
    assert "it makes embeddings only (bert)" in capsys.readouterr().out
    assert main(["model", "show", "words", "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["kind"] == "makes embeddings only (bert)"
    assert main(["model", "add", "ranks", str(write_bert(tmp_path / "ranks.gguf", pooling=RANK))]) == OK
    assert "it is not served (bert: it ranks texts" in capsys.readouterr().out


def test_a_daemon_serves_it_and_refuses_to_chat(tmp_path: Path, llmaas: Run) -> None:
    daemon = Daemon(tmp_path, more=("--model", str(write_bert(tmp_path / "bert.gguf"))))
    daemon.start()
    try:
        with Client(daemon.socket, app="test") as client:
            assert len(client.embed(["the cat", "the sea"]).vectors) == 2
        said = llmaas("chat", "notes", "--once", "hi", LLMAAS_SOCKET=str(daemon.socket))
        assert said.returncode != OK and "makes embeddings only" in said.stderr and "embed" in said.stderr
        assert "Traceback" not in said.stderr
    finally:
        assert daemon.stop() == OK
    assert "ERROR" not in daemon.log and "WARNING" not in daemon.log

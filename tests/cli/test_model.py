"""``llmaas model``: registering, showing, loading from a web server, forgetting."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from llmaas.cli.doctor.checks import examine
from llmaas.cli.doctor.models import check_models
from llmaas.cli.main import FAILED, OK, USAGE, main
from llmaas.cli.served_model import one_model, several
from llmaas.config.sources import LoadedConfig, load
from llmaas.errors import ConfigError, UnknownModel
from tests.model_files.test_gguf import model
from tests.support.file_server import file_server


@pytest.fixture
def data(bare_environ: Path) -> Path:
    return bare_environ / ".local" / "share" / "llmaas"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return model(tmp_path / "m.gguf")


def config(**flags: str) -> LoadedConfig:
    return load(flags, os.environ)


def test_a_model_is_registered_shown_made_default_and_forgotten(
    data: Path, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["model", "ls"]) == OK and "No models yet" in capsys.readouterr().out
    monkeypatch.chdir(file.parent)
    assert main(["model", "add", "small", "m.gguf", "--cells", "4096", "--held", "true"]) == OK
    assert main(["model", "add", "other", str(file), "--pinned", "--pool-bytes", "64M"]) == OK
    assert "small: Small" in capsys.readouterr().out
    assert main(["model", "ls"]) == OK
    table = capsys.readouterr().out
    assert re.search(r"small \* +\S+ \S+ +no +PAGES +- ", table), table
    assert "cells=4096 held=true" in table and "pool_bytes=64M" in table
    assert main(["model", "default", "other"]) == OK
    capsys.readouterr()
    assert main(["model", "ls", "--json"]) == OK
    listed = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["default"], each["pinned"], each["tier"]) for each in listed] == [
        ("small", False, False, "PAGES"),  # the file has just been written
        ("other", True, True, "PAGES"),
    ]
    assert main(["model", "show", "small", "--json"]) == OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["file"] == str(file) and shown["trained_context"] == 2048 and shown["store"] == str(data)
    assert main(["model", "rm", "other"]) == OK
    assert file.exists() and main(["model", "show", "other"]) == FAILED


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["add", "a b", "FILE"], "name"),
        (["add", "m", "FILE", "--cells", "3"], "cells"),
        (["add", "m", "FILE", "--sha256", "00"], "--sha256"),
        (["pull", "m", "http://example.org/m.gguf"], "https"),
        (["pull", "m", "hf:a/b"], "hf:"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(
    data: Path, file: Path, args: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", *[str(file) if arg == "FILE" else arg for arg in args]]) == USAGE
    assert why in capsys.readouterr().err
    assert not data.exists()


def test_a_file_that_is_no_model_is_not_registered(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.gguf").write_text("text")
    for path in (tmp_path / "t.gguf", tmp_path, tmp_path / "gone.gguf", Path("/dev/zero")):
        assert main(["model", "add", "m", str(path)]) == FAILED
    assert not (data / "models.json").exists()


def test_a_file_is_pulled_checked_and_registered(data: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with file_server(file.read_bytes()) as server:
        server.cut_after = [1000]
        assert main(["model", "pull", "m", server.url, "--sha256", server.sha256]) == OK
        assert main(["model", "pull", "n", server.url, "--sha256", "0" * 64]) == FAILED
        assert "another checksum" in capsys.readouterr().err
        assert main(["model", "pull", "n", server.url]) == OK
        assert "not compared" in capsys.readouterr().err
        url, sha256 = server.url, server.sha256
    assert (data / "models" / "m.gguf").read_bytes() == file.read_bytes()
    main(["model", "show", "m", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["source"], shown["sha256"]) == (url, sha256)


def test_without_a_model_the_default_one_is_served_with_its_settings_and_store(data: Path, file: Path) -> None:
    assert one_model(config()).config.model is None
    main(["model", "add", "small", str(file), "--cells", "4096", "--bits", "3.5"])
    main(["model", "add", "other", str(file), "--cells", "512"])
    found = one_model(config(cells="1024"))
    assert (found.served_as, found.config.model, found.config.data_dir) == ("small", file, data)
    assert (found.config.cells, found.config.bits) == (1024, 3.5), "a flag beats a model's own setting"
    assert found.origins["bits"] == "model small" and found.origins["cells"] == "flag --cells"
    other = one_model(config(models="other"))
    assert (other.config.cells, other.config.data_dir) == (512, data / "model-stores" / "other")
    given = one_model(config(model=str(file)))
    assert given.served_as == "" and given.config.cells == 8192
    with pytest.raises(UnknownModel):
        one_model(config(models="none-such"))


def test_a_store_of_one_model_can_be_named_by_itself(data: Path, file: Path) -> None:
    main(["model", "add", "small", str(file)])
    main(["model", "add", "other", str(file)])
    found = one_model(config(data_dir=str(data / "model-stores" / "other")))
    assert found.config.data_dir == data / "model-stores" / "other"


def test_several_are_served_if_several_are_meant(data: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match="no model is registered"):
        several(config(models="all"))
    main(["model", "add", "small", str(file)])
    assert several(config(models="all")) == [] == several(config()) == several(config(models="small"))
    main(["model", "add", "other", str(file)])
    assert [each.name for each in several(config(models="all"))] == ["small", "other"]
    assert [each.name for each in several(config(models="other,small"))] == ["other", "small"]
    assert several(config()) == []


def test_several_models_cannot_share_memory_that_was_lent(data: Path, file: Path, tmp_path: Path) -> None:
    for name in ("small", "other"):
        main(["model", "add", name, str(file)])
    assert several(config(models="small", slot_folder=str(tmp_path))) == []
    with pytest.raises(
        ConfigError, match=r"slot_folder \(flag --slot-folder\) is for a daemon with one model"
    ) as error:
        several(config(models="all", slot_folder=str(tmp_path)))
    assert "Leave it out" in error.value.hint


def test_settings_of_a_model_that_do_not_go_together_are_refused(data: Path, file: Path) -> None:
    assert main(["model", "add", "small", str(file), "--sequences", "4"]) == USAGE
    assert main(["model", "add", "small", str(file), "--sequences", "9"]) == OK
    with pytest.raises(ConfigError, match="max_running"):
        one_model(config(max_running="10"))


def test_what_each_process_would_be_started_with_is_shown(
    data: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["model", "add", "small", str(file), "--cells", "512"])
    main(["model", "add", "other", str(file)])
    capsys.readouterr()
    assert main(["serve", "--models", "all", "--bits", "16/16", "--record", "/tmp/r", "--show-config"]) == OK
    small, other = capsys.readouterr().out.splitlines()
    assert f"--model={file}" in small and "--cells=512" in small and "--bits=16/16" in small
    assert "--record=/tmp/r.other" in other and f"--data-dir={data}/model-stores/other" in other
    assert "--http=none" in other and "--models=none" in other
    pools = ("--models-bytes", "1G", "--models-pool-bytes")
    assert main(["serve", "--models", "all", *pools, "100M", "--show-config"]) == OK
    assert "models-pool-bytes" not in capsys.readouterr().out, "the front process sees to it"
    assert main(["serve", "--models", "all", *pools, "1G", "--show-config"]) == USAGE
    assert "Lower models_pool_bytes" in capsys.readouterr().err


def test_the_doctor_looks_at_registered_files_and_goes_on_without_a_registry(data: Path, file: Path) -> None:
    main(["model", "add", "small", str(file)])
    main(["model", "add", "gone", str(file)])
    assert [each.level for each in check_models(config().config)] == ["ok", "ok"]
    file.write_bytes(file.read_bytes() + bytes(5000))
    assert [each.level for each in check_models(config().config)] == ["warn", "warn"]
    file.unlink()
    assert [each.level for each in check_models(config().config)] == ["fail", "fail"]
    (data / "models.json").write_text("{")
    found = list(examine(config(), {}, deep=False, repair=False))
    assert [each.level for each in found if each.about == "models"] == ["fail"] and len(found) > 4


def test_what_models_share_is_seen_to_by_the_front_process(
    data: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["model", "add", "small", str(file), "--cells", "2048", "--least-cells", "512"])
    main(["model", "add", "other", str(file)])
    capsys.readouterr()
    shared = ("--models-disk-bytes", "1G", "--models-bits", "4", "--models-pool-bytes", "none", "--least-cells", "256")
    assert main(["serve", "--models", "all", *shared, "--show-config"]) == OK
    shown = capsys.readouterr().out
    assert "--cells=2048" in shown and "models-" not in shown.replace("model-stores", "")
    assert "least-cells" not in shown, "the front says how many there are when it starts the process"
    assert main(["model", "add", "small", str(file), "--cells", "512", "--least-cells", "1024"]) == USAGE
    assert "least_cells" in capsys.readouterr().err

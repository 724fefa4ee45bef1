"""The doctor's checks, each with what it must find."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from llmaas.cli import doctor_checks as doctor
from llmaas.config import Config, load
from llmaas.kvchunks.store import Store
from llmaas.records import Geometry, ModelInfo

INFO = ModelInfo("m", "f", "v", Geometry(30, 192, 192, 64, 64), 8192, 49152, 92 << 20)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    flags = {"data_dir": str(tmp_path / "data"), "socket": str(tmp_path / "d.sock")}
    return load(flags, {"HOME": str(tmp_path)}).config


def levels(findings: list[doctor.Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_strange_variables_are_a_warning(config: Config, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "LLMAAS_CELL": "5"}
    findings = list(doctor.check_config(load({}, environ), environ))
    assert levels(findings) == ["ok", "warn"]
    assert findings[1].hint == "Did you mean LLMAAS_CELLS?"


def test_the_engine_is_found() -> None:
    (finding,) = doctor.check_engine()
    assert finding.level == "ok"
    assert "0.3.36" in finding.text


def test_the_packaged_model_is_loaded_and_measured(config: Config, model_path: Path) -> None:
    findings = list(doctor.check_model(config))
    assert levels(findings) == ["ok"] * 4
    assert "30 layers, K 192 and V 192 values: 22.5 KiB a token" in findings[1].text


def test_what_cannot_be_known_is_a_finding_and_the_rest_goes_on(config: Config, tmp_path: Path) -> None:
    loaded = load({"model": str(tmp_path / "none.gguf"), "data_dir": str(tmp_path / "data")}, {"HOME": str(tmp_path)})
    findings = {f.about: f for f in doctor.examine(loaded, {}, deep=False, repair=False)}
    assert findings["model"].level == "fail"
    assert "there is no model file" in findings["model"].text
    assert findings["socket"].level == "ok"


def test_a_model_that_cannot_be_chunked_is_told_why(config: Config) -> None:
    findings = list(doctor.kv_findings(config, replace(INFO, chunkable=False, note="it is recurrent")))
    assert levels(findings) == ["ok", "warn", "ok"]
    assert "it is recurrent" in findings[1].text


def test_budgets_beyond_the_machine_fail(config: Config) -> None:
    (finding,) = doctor.memory_findings(replace(config, pool_bytes=1 << 50), INFO)
    assert finding.level == "fail"
    assert "--pool-bytes" in finding.hint
    (finding,) = doctor.memory_findings(config, INFO)
    assert "model 92.0 MiB, cells 180.0 MiB, pool 256.0 MiB" in finding.text


def test_a_data_directory_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    (finding,) = doctor.check_disk(tmp_path / "data")
    assert finding.level == "fail"
    (finding,) = doctor.check_disk(tmp_path / "data" / "below")
    assert finding.level == "fail"


def test_a_data_directory_open_to_others_is_a_warning(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    assert levels(list(doctor.check_disk(data)))[-1] == "warn"
    data.chmod(0o700)
    assert "others" not in "".join(finding.text for finding in doctor.check_disk(data))


def test_a_store_that_is_not_there_is_not_made(config: Config) -> None:
    (finding,) = doctor.check_store(config, deep=True, repair=True)
    assert finding.level == "ok"
    assert not config.data_dir.exists()


def test_a_sound_store_is_ok_and_what_is_wrong_with_one_is_found_and_repaired(config: Config) -> None:
    Store(config.data_dir).close()
    assert levels(list(doctor.check_store(config, deep=True, repair=False))) == ["ok"]
    (config.data_dir / "index.sqlite").chmod(0o644)
    found = list(doctor.check_store(config, deep=True, repair=False))
    assert set(levels(found)) == {"fail"}
    assert "--repair" in found[0].hint
    repaired = list(doctor.check_store(config, deep=True, repair=True))
    assert [f.text for f in repaired] == [f"repaired: {f.text}" for f in found]
    assert set(levels(repaired)) == {"warn"}
    assert levels(list(doctor.check_store(config, deep=True, repair=False))) == ["ok"]


def test_a_store_that_another_process_has_open_fails_if_no_daemon_answers(config: Config, tmp_path: Path) -> None:
    loaded = load(
        {"data_dir": str(config.data_dir), "socket": str(config.socket), "model": "none"}, {"HOME": str(tmp_path)}
    )
    with Store(config.data_dir):
        findings = {f.about: f for f in doctor.examine(loaded, {}, deep=False, repair=True)}
        assert findings["store"].level == "fail"
        assert "in use" in findings["store"].text
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(config.socket))
            listener.listen()
            (finding,) = doctor.check_store(config, deep=False, repair=False)
            assert (finding.level, finding.text.startswith("not checked")) == ("ok", True)


def test_an_index_beyond_reading_is_moved_aside_only_when_asked_for(config: Config, tmp_path: Path) -> None:
    Store(config.data_dir).close()
    (config.data_dir / "index.sqlite").write_bytes(b"garbage" * 1000)
    loaded = load({"data_dir": str(config.data_dir), "model": "none"}, {"HOME": str(tmp_path)})

    def store_findings(repair: bool) -> list[doctor.Finding]:
        return [f for f in doctor.examine(loaded, {}, deep=False, repair=repair) if f.about == "store"]

    assert levels(store_findings(repair=False)) == ["fail"]
    assert levels(store_findings(repair=True)) == ["warn", "ok"]
    assert list(config.data_dir.glob("index.sqlite.corrupt-*"))


def test_a_stale_socket_is_a_warning_and_a_file_in_its_place_fails(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    (finding,) = doctor.check_socket(path)
    assert (finding.level, "stale" in finding.text) == ("warn", True)
    path.unlink()
    path.write_text("x")
    (finding,) = doctor.check_socket(path)
    assert finding.level == "fail"

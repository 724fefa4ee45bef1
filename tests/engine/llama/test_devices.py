"""Which devices compute, on a machine and with an engine that may have none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmaas.cli.doctor.model import device_findings
from llmaas.config.sources import load
from llmaas.engine.llama.devices import ComputeDevice, Placement, compute_devices, device_list
from llmaas.engine.llama.model import LlamaModel
from llmaas.errors import ConfigError


def test_the_cpu_alone_is_a_list_that_ends_at_once() -> None:
    assert list(device_list(())) == [None]
    assert device_list(None) is None


def test_a_device_that_is_not_there_is_an_error_that_says_what_is(gguf: Path) -> None:
    with pytest.raises(ConfigError, match="'Voodoo0'") as error:
        LlamaModel(gguf, placement=Placement(devices=("Voodoo0",)))
    assert "docs/gpu.md" in (error.value.hint or "")
    model = LlamaModel(gguf, placement=Placement(devices=()))
    assert not model.device_bytes


def test_the_daemon_says_so_too(gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmaas", "serve", "--model", str(gguf), "--devices", "Voodoo0"]
    command += ["--data-dir", str(tmp_path / "data"), "--socket", str(tmp_path / "d.sock")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "HOME": str(tmp_path)})
    assert run.returncode not in (0, -6) and "no device here is called 'Voodoo0'" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("flags", "needed", "level", "words"),
    [
        ({}, 3 << 30, "ok", "3.0 GiB are needed"),
        ({}, 5 << 30, "warn", "5.0 GiB are needed"),
        ({"devices": "none"}, 0, "ok", "not used"),
        ({"gpu_layers": "0"}, 0, "ok", "not used"),
        ({"devices": "Other0"}, 0, "ok", "not used"),
    ],
)
def test_doctor_says_of_each_device_what_it_is_asked_to_hold(
    flags: dict[str, str], needed: int, level: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = ComputeDevice("Toy0", "a toy", False, 4 << 30, 8 << 30)
    monkeypatch.setattr("llmaas.cli.doctor.model.compute_devices", lambda: [device])
    (found,) = device_findings(load(flags, {}).config, {"Toy0": needed} if needed else {})
    assert found.level == level and words in found.text and "Toy0: a toy, 4.0 GiB" in found.text
    assert bool(found.hint) == (level == "warn")


def test_devices_have_names_of_their_own() -> None:
    names = [device.name for device in compute_devices()]
    assert len(set(names)) == len(names) and "CPU" not in names

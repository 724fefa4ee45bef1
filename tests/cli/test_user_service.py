"""The daemon as a unit of the user's systemd; systemctl is a script that writes down how it was called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llmaas.cli.unit import unit_text
from tests.cli.conftest import Run

SYSTEMCTL = """\
#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
  *is-enabled*) echo enabled;;
  *is-active*) echo inactive; exit 3;;
esac
exit {code}
"""


@pytest.fixture
def bin_with(tmp_path: Path) -> Path:
    """A PATH with a systemctl in it; what it was asked is in ``calls`` of the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    make_systemctl(folder, 0)
    return folder


def make_systemctl(folder: Path, code: int) -> None:
    script = folder / "systemctl"
    script.write_text(SYSTEMCTL.format(log=folder / "calls", code=code))
    script.chmod(0o755)


def unit(home: Path) -> Path:
    return home / ".config" / "systemd" / "user" / "llmaas.service"


def test_install_status_and_uninstall_twice_each(llmaas: Run, tmp_path: Path, bin_with: Path) -> None:
    path = f"{bin_with}:/usr/bin:/bin"
    for _ in range(2):
        done = llmaas("service", "install", PATH=path)
        assert (done.returncode, done.stderr) == (0, "")
        assert str(unit(tmp_path)) in done.stdout
    calls = (bin_with / "calls").read_text().splitlines()
    assert calls[:3] == ["--user daemon-reload", "--user enable llmaas.service", "--user restart llmaas.service"]
    text = unit(tmp_path).read_text("utf-8")
    assert "Type=notify\n" in text and "CPUWeight=50\n" in text and "Restart=on-failure\n" in text
    status = llmaas("service", "status", "--socket", str(tmp_path / "no.sock"), PATH=path)
    assert status.returncode == 1
    assert "enabled" in status.stdout and "inactive" in status.stdout and "no daemon answers" in status.stdout
    for expected in ("conversations are still in", "not installed"):
        done = llmaas("service", "uninstall", PATH=path)
        assert (done.returncode, expected in done.stdout) == (0, True)
    assert not unit(tmp_path).exists()
    assert "--user disable --now llmaas.service" in (bin_with / "calls").read_text()


def test_on_demand_systemd_listens_and_the_first_client_starts_it(llmaas: Run, tmp_path: Path, bin_with: Path) -> None:
    path, sockets = f"{bin_with}:/usr/bin:/bin", unit(tmp_path).with_name("llmaas.socket")
    for _ in range(2):
        done = llmaas("service", "install", "--on-demand", PATH=path)
        assert (done.returncode, done.stderr) == (0, "") and str(sockets) in done.stdout
    text = sockets.read_text("utf-8")
    listen = [line.partition("=")[2] for line in text.splitlines() if line.startswith("ListenStream=")]
    assert [Path(each).name for each in listen] == ["llmaas.sock", "llmaas-admin.sock"]
    assert "SocketMode=0600\n" in text and "DirectoryMode=0700\n" in text
    calls = (bin_with / "calls").read_text().splitlines()
    assert calls[1:4] == [
        "--user disable --now llmaas.service",
        "--user enable llmaas.socket",
        "--user restart llmaas.socket",
    ]
    assert llmaas("service", "install", PATH=path).returncode == 0, "at login again"
    assert not sockets.exists() and unit(tmp_path).exists()
    assert "--user disable --now llmaas.socket" in (bin_with / "calls").read_text()
    llmaas("service", "install", "--on-demand", PATH=path)
    assert llmaas("service", "uninstall", PATH=path).returncode == 0
    assert not sockets.exists() and not unit(tmp_path).exists()


def test_a_settings_file_is_named_and_variables_are_told_to_be_missing(
    llmaas: Run, tmp_path: Path, bin_with: Path
) -> None:
    file = tmp_path / "my settings.toml"
    file.write_text("cells = 4096\n")
    done = llmaas("service", "install", "--config", str(file), PATH=f"{bin_with}:/usr/bin:/bin", LLMAAS_CELLS="2048")
    assert "does not have the variable LLMAAS_CELLS: put cells into the settings file" in done.stderr
    assert f'serve --config "{file}"\n' in unit(tmp_path).read_text("utf-8")


def test_without_systemd_it_says_so_and_what_to_do(llmaas: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = llmaas("service", "install", PATH=str(tmp_path / "empty"))
    assert (done.returncode, "this system has no systemctl" in done.stderr) == (1, True)
    assert "install --print" in done.stderr and not unit(tmp_path).exists()
    phone = llmaas("service", "install", PATH=str(tmp_path / "empty"), TERMUX_VERSION="0.118")
    assert (phone.returncode, "termux/install.sh" in phone.stderr) == (1, True)
    shown = llmaas("service", "install", "--print", PATH=str(tmp_path / "empty"))
    assert (shown.returncode, "ExecStart=" in shown.stdout) == (0, True)
    status = llmaas("service", "status", "--socket", str(tmp_path / "x"), PATH=str(tmp_path / "empty"))
    assert (status.returncode, "no systemctl" in status.stdout) == (1, True)


def test_what_systemctl_says_is_told(llmaas: Run, bin_with: Path) -> None:
    make_systemctl(bin_with, 1)
    done = llmaas("service", "install", PATH=f"{bin_with}:/usr/bin:/bin")
    assert (done.returncode, "daemon-reload' failed" in done.stderr) == (1, True)


def test_a_unit_of_somebody_else_is_left_alone(llmaas: Run, tmp_path: Path, bin_with: Path) -> None:
    unit(tmp_path).parent.mkdir(parents=True)
    unit(tmp_path).write_text("[Service]\nExecStart=/mine\n")
    for action in ("install", "uninstall"):
        done = llmaas("service", action, PATH=f"{bin_with}:/usr/bin:/bin")
        assert (done.returncode, "was not made by 'llmaas service'" in done.stderr) == (2, True)
    assert unit(tmp_path).read_text() == "[Service]\nExecStart=/mine\n"


def test_a_model_that_is_not_there_is_refused_before_anything_is_made(
    llmaas: Run, tmp_path: Path, bin_with: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('model = "none.gguf"\n')
    done = llmaas("service", "install", "--config", str(file), PATH=f"{bin_with}:/usr/bin:/bin")
    assert (done.returncode, "there is no model file" in done.stderr, unit(tmp_path).exists()) == (1, True, False)


def test_odd_paths_are_quoted_as_systemd_reads_them() -> None:
    text = unit_text("x", ["/a b/100%/$x", 'say "hi"'], {"XDG_DATA_HOME": "/d d"})
    assert 'ExecStart="/a b/100%%/$$x" "say \\"hi\\""\n' in text
    assert 'Environment="XDG_DATA_HOME=/d d"\nRestart=' in text


def test_systemd_finds_the_unit_well(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("this system has no systemd-analyze")
    file = tmp_path / "llmaas.service"
    file.write_text(unit_text("llmaas.service", ["/bin/true", "serve"], {"XDG_DATA_HOME": "/d d"}))
    command = ["systemd-analyze", "verify", "--man=no", "--user", str(file)]
    environ = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert "llmaas.service" not in done.stderr, done.stderr

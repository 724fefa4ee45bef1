"""A client without an address finds the daemon where the commands find it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.api.daemon_address import DaemonAddress, daemon_address, find_daemon
from llmaas.cli.options import socket_of
from llmaas.config.sources import load
from llmaas.errors import ConfigError
from tests.support.loop import on_a_loop
from tests.support.scripted import serving_in_a_thread

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "nothing": {},
    "runtime folder": {"XDG_RUNTIME_DIR": "/run/nobody"},
    "variable": {"LLMAAS_SOCKET": "/s/d.sock", "LLMAAS_CONFIG": "own.toml"},
    "relative variable": {"LLMAAS_SOCKET": "d.sock"},
    "home in a variable": {"LLMAAS_SOCKET": "~/d.sock"},
    "file of the variable": {"LLMAAS_CONFIG": "own.toml"},
    "default file": {"XDG_CONFIG_HOME": "{home}/conf"},
    "user": {"LLMAAS_DAEMON_UID": "12", "LLMAAS_CONFIG": "own.toml"},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "conf" / "llmaas").mkdir(parents=True)
    (tmp_path / "conf" / "llmaas" / "config.toml").write_text('socket = "beside.sock"\ncells = 512\n')
    (tmp_path / "own.toml").write_text('socket = "/own/d.sock"\ndaemon_uid = 7\n')
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("LLMAAS_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("environ", ENVIRONMENTS.values(), ids=list(ENVIRONMENTS))
def test_clients_and_commands_go_to_the_same_place(
    environ: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(home=home))
    loaded = load({}, os.environ)
    assert find_daemon(os.environ) == DaemonAddress(socket_of(loaded), loaded.config.daemon_uid)


def test_a_setting_that_is_the_daemons_business_stops_no_app(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "own.toml").write_text('cells = "many"\nsocket = "/own/d.sock"\n')
    assert find_daemon({"LLMAAS_CONFIG": "own.toml"}).socket == Path("/own/d.sock")


@pytest.mark.parametrize(
    ("text", "message"), [("socket = 5", "must be a path"), ("daemon_uid = 'me'", "number of a user"), ("=", "TOML")]
)
def test_a_wrong_setting_says_which(home: Path, text: str, message: str) -> None:
    (home / "own.toml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        find_daemon({"LLMAAS_CONFIG": "own.toml"})


@pytest.mark.parametrize("variable", ["LLMAAS_SOCKET", "LLMAAS_DAEMON_UID"])
def test_an_empty_variable_is_refused_as_commands_refuse_it(home: Path, variable: str) -> None:
    with pytest.raises(ConfigError):
        find_daemon({variable: ""})
    with pytest.raises(ConfigError):
        load({}, {variable: "", "HOME": str(home)})


def test_what_is_given_goes_before_all_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMAAS_CONFIG", "/does/not/exist.toml")
    assert daemon_address("/a/d.sock", None, admin=True) == DaemonAddress(Path("/a/d-admin.sock"))
    monkeypatch.setenv("LLMAAS_CONFIG", "own.toml")
    assert daemon_address(None, 9, admin=False) == DaemonAddress(Path("/own/d.sock"), 9)


@on_a_loop
async def test_both_clients_connect_without_being_told_where(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMAAS_SOCKET", str(path))
    with serving_in_a_thread(path):
        with Client() as client:
            assert client.create(name="x").app == f"{os.getuid()}/python"
        async with await AsyncClient.connect() as other:
            assert [info.name for info in await other.contexts()] == ["x"]

"""``llmaas app`` against a real daemon, and commands that have a token."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmaas.api.app_token import is_token
from llmaas.cli.doctor.store import check_apps
from llmaas.config.settings import Config
from llmaas.config.sources import load
from llmaas.errors import ConfigError
from llmaas.records import AppId
from llmaas.service.app_file import AppRow, write_apps
from tests.cli.conftest import Daemon, Run

ME = os.geteuid()


@pytest.fixture
def at(daemon: Daemon) -> dict[str, str]:
    return {"LLMAAS_SOCKET": str(daemon.socket)}


def test_a_token_is_given_used_rotated_and_forgotten(llmaas: Run, at: dict[str, str]) -> None:
    assert llmaas("app", "ls", **at).stdout.startswith("No app has a token")
    added = llmaas("app", "add", "mail", **at)
    token = added.stdout.strip()
    assert added.returncode == 0 and is_token(token) and "not shown again" in added.stderr
    (shown,) = json.loads(llmaas("app", "ls", "--json", **at).stdout)
    assert (shown["app"], shown["used"]["contexts"]) == (f"{ME}/mail", 0) and token not in str(shown)

    ask = ("chat", "inbox", "--once", "Say hello.", "--max-tokens", "2")
    refused = llmaas(*ask, "--app", "mail", **at)
    assert refused.returncode == 1 and "LLMAAS_TOKEN" in refused.stderr
    with_token = at | {"LLMAAS_TOKEN": token}
    for more in ((), ("--app", "mail")):
        assert llmaas(*ask, *more, **with_token).returncode == 0
    assert "inbox" in llmaas("ctx", "ls", **with_token).stdout
    assert "inbox" not in llmaas("ctx", "ls", **at).stdout
    assert llmaas("ctx", "ls", "--app", "notes", **with_token).returncode == 1
    assert "inbox" in llmaas("ctx", "ls", "--everyone", **with_token).stdout  # the operator needs no token
    assert f"{ME}/mail" in llmaas("app", "ls", **with_token).stdout

    new = llmaas("app", "rotate", "mail", **at).stdout.strip()
    assert is_token(new) and new != token
    assert llmaas("ctx", "ls", **with_token).returncode == 1
    asked = llmaas("app", "rm", "mail", **at)
    assert asked.returncode == 2 and "--delete-contexts" in asked.stderr
    assert llmaas("ctx", "ls", **at, LLMAAS_TOKEN=new).returncode == 0
    assert llmaas("app", "rm", "mail", "--delete-contexts", **at).returncode == 0
    assert llmaas("app", "rm", "mail", **at).returncode == 1
    assert "inbox" not in llmaas("ctx", "ls", "--app", "mail", **at).stdout


def test_an_app_with_contexts_is_asked_about(llmaas: Run, at: dict[str, str]) -> None:
    llmaas("chat", "trap", "--app", "notes", "--once", "x", "--max-tokens", "2", **at)
    refused = llmaas("app", "add", "notes", **at)
    assert refused.returncode == 2 and not refused.stdout and "--keep-contexts" in refused.stderr
    token = llmaas("app", "add", "notes", "--keep-contexts", **at).stdout.strip()
    assert "trap" in llmaas("ctx", "ls", **at, LLMAAS_TOKEN=token).stdout
    assert llmaas("app", "rm", "notes", "--keep-contexts", **at).returncode == 0
    for name in ("a/b", "", "x" * 65, "-x y"):
        assert llmaas("app", "add", "--", name, **at).returncode == 2


def test_quotas_are_set_shown_and_reset(llmaas: Run, at: dict[str, str]) -> None:
    llmaas("app", "add", "web", "--quota", "contexts=5", "--quota", "disk_bytes=64M", **at)
    assert "0/5" in llmaas("app", "ls", **at).stdout
    changed = llmaas("app", "quota", "web", "contexts=none", "priority=7", "rate=2.5", "--json", **at)
    expected = {"contexts": None, "tokens": None, "disk_bytes": 64 << 20, "requests": None, "rate": 2.5, "priority": 7}
    assert json.loads(changed.stdout)["quota"] == expected
    assert "64M" in llmaas("app", "quota", f"{ME}/web", **at).stdout
    stats = json.loads(llmaas("stats", "--everyone", "--json", **at).stdout)
    assert f"{ME}/web" not in llmaas("stats", **at).stdout
    assert stats["app_quotas"][f"{ME}/web"]["priority"]["quota"] == 7
    for wrong in ("contexts", "contexts=x", "colour=3", "priority=10", "rate=0", "contexts=-1"):
        refused = llmaas("app", "quota", "web", wrong, **at)
        assert refused.returncode == 2 and "KEY" in refused.stderr
    assert llmaas("app", "rm", "web", **at).returncode == 0
    assert llmaas("app", "quota", "http", "requests=3", **at).returncode == 0
    (shown,) = json.loads(llmaas("app", "ls", "--json", **at).stdout)
    assert (shown["app"], shown["created"]) == (f"{ME}/http", None)
    assert llmaas("app", "rm", "http", **at).returncode == 0


def test_an_address_that_others_reach_needs_tokens() -> None:
    for address in ("0.0.0.0:80", "192.168.1.2:80", "[::]:80"):
        with pytest.raises(ConfigError, match="other machines") as error:
            load({"http": address}, {})
        assert "http_tokens" in error.value.hint
        found: Config = load({"http": address, "http_tokens": "required", "http_hosts": "Box.lan,b"}, {}).config
        assert found.http_hosts == ("box.lan", "b")
    assert load({"http": "127.0.0.1:80"}, {}).config.http_tokens == "optional"


def test_the_doctor_looks_at_the_file_of_apps(tmp_path: Path) -> None:
    path = tmp_path / "apps.json"
    assert list(check_apps(path)) == []
    write_apps(path, [AppRow(AppId("1000/mail"), bytes(32), 1.5)])
    (fine,) = check_apps(path)
    assert fine.level == "ok" and "1 have" in fine.text
    path.write_text("{}")
    (bad,) = check_apps(path)
    assert bad.level == "fail" and "damaged" in bad.text and "backup" in bad.hint

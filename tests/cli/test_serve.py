"""The daemon's manners towards a service manager."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from llmaas.cli.serve import notify_manager


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told_by_one_datagram(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        notify_manager("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_a_manager_that_is_gone_is_logged_and_not_fatal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    notify_manager("READY=1")
    assert "/nowhere/notify" in caplog.text


def test_without_a_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_manager("READY=1")
    assert caplog.text == ""

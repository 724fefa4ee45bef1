"""The doctor's look at the socket, and at the daemon that serves it, if one does.

Law: asks a running daemon for its figures, and nothing else.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmaas.api.client import Client
from llmaas.cli.doctor.finding import Finding
from llmaas.cli.options import DEFAULT_APP
from llmaas.cli.out import human_bytes


def answers(path: Path) -> bool:
    """Whether somebody accepts connections on the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        return probe.connect_ex(str(path)) == 0


def check_socket(path: Path, daemon_uid: int | None = None) -> Iterator[Finding]:
    try:
        info = path.lstat()
    except FileNotFoundError:
        yield Finding("socket", "ok", f"no daemon on {path}", "'llmaas serve' starts one.")
        return
    except OSError as error:
        yield Finding("socket", "fail", f"cannot look at {path}: {error.strerror}", "Give another path with --socket.")
        return
    if not stat.S_ISSOCK(info.st_mode):
        yield Finding("socket", "fail", f"{path} is no socket", "Remove it, or give another path with --socket.")
        return
    if info.st_uid != os.getuid():
        yield Finding("socket", "warn", f"{path} belongs to user {info.st_uid}", "Trust its answers as you trust them.")
    if not answers(path):
        yield Finding("socket", "warn", f"{path} is stale: nobody serves it", "'llmaas serve' replaces it.")
        return
    with Client(path, app=DEFAULT_APP, token="", daemon_uid=daemon_uid) as client:
        stats = client.stats()
    yield Finding("socket", "ok", f"a daemon answers on {path}")
    yield budget_finding(stats["pool_bytes"], stats["disk_bytes"])
    yield from duty_findings(stats["host"]["governor"])


def budget_finding(pool: Mapping[str, Any], disk: Mapping[str, Any]) -> Finding:
    """What a running daemon may hold now, and why."""
    quota = disk["quota"] if isinstance(disk["quota"], str) else human_bytes(disk["quota"])
    text = f"pool {human_bytes(pool['budget'])} ({pool['why']}); disk {human_bytes(disk['chunks'])} of quota {quota}"
    if pool["why"] == "configured":
        return Finding("budgets", "ok", text)
    hint = f"Memory is short; the pool goes back to {human_bytes(pool['configured'])} when it can."
    return Finding("budgets", "warn", text, hint)


def duty_findings(governor: Mapping[str, Any]) -> Iterator[Finding]:
    """How much of the time a running daemon computes; nothing where it does not watch heat and battery."""
    if not governor["watched"]:
        return
    text = f"the daemon computes {governor['duty']:.0%} of the time"
    if governor["duty"] == 1.0:
        yield Finding("heat", "ok", text)
    else:
        yield Finding("heat", "warn", f"{text}, because of {governor['why']}")

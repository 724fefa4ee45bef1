"""The processes of all apps that call one program.

Law: a process is started before it is needed, never inside what is timed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from bench.lib.machine import ROOT


class CallFailed(RuntimeError):
    """A program refused a call, or ended."""


class AppProcesses:
    """``kind`` and ``address`` as ``bench.replaying.app`` takes them."""

    def __init__(self, kind: str, address: str, names: Iterable[str]) -> None:
        command = [sys.executable, "-m", "bench.replaying.app", kind, address]
        self._processes = {
            name: subprocess.Popen(
                [*command, name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
            for name in dict.fromkeys(names)
        }
        for process in self._processes.values():
            _read(process)

    def call(self, app: str, request: dict[str, Any]) -> dict[str, Any]:
        """What the app's process replies. Raises CallFailed."""
        process = self._processes[app]
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        reply = _read(process)
        if "failed" in reply:
            raise CallFailed(reply["failed"])
        return reply

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()

    def __enter__(self) -> AppProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise CallFailed("an app's process ended")
    found: dict[str, Any] = json.loads(line)
    return found

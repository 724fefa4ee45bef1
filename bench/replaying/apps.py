"""The processes of all apps that call one program.

Law: a process is started before it is needed, never inside what is timed.
"""

from __future__ import annotations

import json
import select
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
        self.begin(app, request)
        return self.end(app)

    def begin(self, app: str, request: dict[str, Any]) -> None:
        """Have the app make a call, and do not wait for it: ``end`` does."""
        process = self._processes[app]
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()

    def has_ended(self, app: str) -> bool:
        """Whether ``end`` would not wait."""
        stdout = self._processes[app].stdout
        assert stdout is not None
        return bool(select.select([stdout], [], [], 0)[0])

    def end(self, app: str) -> dict[str, Any]:
        """The reply to the call that was begun. Raises CallFailed."""
        reply = _read(self._processes[app])
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

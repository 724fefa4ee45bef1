"""The demo's apps as the demo itself sees them: processes that take commands and print what happens.

Law: every process that is started here is ended here, whatever happens meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmaas.cli.demo.plan import ANSWER_TOKENS, AppPlan
from llmaas.errors import MachineError
from llmaas.frozen import frozen

_PATIENCE_S = 180.0
_END_S = 3.0


@frozen
class AppLine:
    """A line that an app printed; ``what`` is text, done, failed, or gone when its process has ended."""

    app: str
    what: str
    fields: Mapping[str, Any]


class Crew:
    """The apps that run. ``on_text(app, text)`` is called as answers grow."""

    def __init__(
        self, socket: Path, seed: int, environ: Mapping[str, str], on_text: Callable[[str, str], None]
    ) -> None:
        self._socket, self._seed, self._environ, self._on_text = socket, seed, environ, on_text
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._lines: queue.Queue[AppLine] = queue.Queue()
        self._errors: dict[str, list[str]] = {}

    def start(self, plan: AppPlan, asked: int = 0) -> None:
        """Start the app's process; ``wait`` returns when it has connected."""
        flags = {"socket": self._socket, "app": plan.app, "history": plan.n_history, "asked": asked}
        flags |= {"max-tokens": ANSWER_TOKENS, "seed": self._seed}
        process = subprocess.Popen(
            [sys.executable, "-m", "llmaas.cli.demo.app", *(f"--{name}={value}" for name, value in flags.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(self._environ),
            start_new_session=True,
        )
        self._processes[plan.app] = process
        self._errors[plan.app] = []
        threading.Thread(target=self._listen, args=(plan.app, process), daemon=True).start()
        threading.Thread(target=self._keep_errors, args=(plan.app, process), daemon=True).start()

    def send(self, app: str, command: str) -> None:
        stdin = self._processes[app].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone: its listener puts that in the queue
            stdin.write(command + "\n")
            stdin.flush()

    def wait(self, apps: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """What each of ``apps`` answers in the end. Raises MachineError if one fails."""
        answers: dict[str, Mapping[str, Any]] = {}
        while len(answers) < len(apps):
            answers |= dict([self.next()])
        return answers

    def next(self) -> tuple[str, Mapping[str, Any]]:
        """The next app that is done, and its answer. Raises MachineError."""
        while True:
            try:
                line = self._lines.get(timeout=_PATIENCE_S)
            except queue.Empty:
                raise MachineError(f"no app has said anything for {_PATIENCE_S:.0f} s") from None
            if line.what == "text":
                self._on_text(line.app, line.fields["text"])
            elif line.what == "done":
                return line.app, line.fields
            elif line.what == "failed":
                raise MachineError(f"app {line.app}: {line.fields['message']}", hint=line.fields["hint"])
            else:
                last = "".join(self._errors[line.app][-3:]).strip()
                raise MachineError(f"the process of app {line.app} has ended{': ' if last else ''}{last}")

    def ask(self, app: str, command: str) -> Mapping[str, Any]:
        self.send(app, command)
        return self.wait([app])[app]

    def close(self) -> None:
        """End every app: by closing its stdin, and by force if it does not end."""
        processes, self._processes = self._processes, {}
        for process in processes.values():
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        for process in processes.values():
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
        self.close()

    def _listen(self, app: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                fields = json.loads(line)
                self._lines.put(AppLine(app, fields["what"], fields))
        if self._processes.get(app) is process:
            self._lines.put(AppLine(app, "gone", {}))

    def _keep_errors(self, app: str, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            self._errors[app].extend(process.stderr)


def demo_environ(config_home: Path) -> dict[str, str]:
    """The environment for the demo's processes, without the user's own settings of llmaas."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMAAS_")}
    return kept | {"XDG_CONFIG_HOME": str(config_home)}

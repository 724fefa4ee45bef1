"""What a bench has measured so far, in a file, so that a run that is cut off goes on where it was.

Law: a step's result is in the file before the next step begins. Only a run that has not ended is gone on with: one that
has is measured anew, from its first step.

The file has JSON lines {run, step, value}; ``run`` names the bench, its options and the commit. The line with ``ended``
says that the result was printed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.lib.say import say

T = TypeVar("T")
_LEAST_S = 2.0
"""Steps that take less are not spoken of one by one."""


class Kept:
    """The steps of one run. ``path`` None: nothing is kept."""

    def __init__(self, path: Path | None = None, run: str = "") -> None:
        self._path, self._run = path, run
        self._known: dict[str, object] = _steps_of(path, run) if path is not None else {}
        self._resumed = len(self._known)
        self._left, self._spent, self._done = 0, 0.0, 0
        self._said = 0.0

    @property
    def resumed(self) -> int:
        """How many steps an earlier run has measured."""
        return self._resumed

    def expect(self, steps: int) -> None:
        """So many more steps follow: for the time that is left."""
        self._left += steps

    def step(self, name: str, make: Callable[[], T]) -> T:
        """``make()``, or what an earlier run made of it. It must be what JSON can hold."""
        if (found := self.find(name)) is not None:
            self._left = max(0, self._left - 1)
            return found[0]  # type: ignore[return-value]
        begin = time.monotonic()
        value = make()
        self.put(name, value, time.monotonic() - begin)
        return value

    def find(self, name: str) -> tuple[object] | None:
        return (self._known[name],) if name in self._known else None

    def put(self, name: str, value: object, seconds: float) -> None:
        """A step took so long."""
        self._known[name] = value
        self._append({"step": name, "value": value})
        self._left, self._spent, self._done = max(0, self._left - 1), self._spent + seconds, self._done + 1
        now = time.monotonic()
        if self._left and now - self._said > _LEAST_S:
            self._said = now
            left = self._spent / self._done * self._left
            say(f"{name} is done; {self._left} more, about {left:.0f} s" if left < 90 else
                f"{name} is done; {self._left} more, about {left / 60:.0f} min")  # fmt: skip

    def end(self) -> None:
        """The result was printed."""
        if self._done or self._resumed:
            self._append({"ended": True})

    def _append(self, row: dict[str, object]) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"run": self._run, **row}) + "\n")


def _steps_of(path: Path, run: str) -> dict[str, object]:
    """The steps of the run since it last ended; a line that was cut off is left out, and ended."""
    if not path.exists():
        return {}
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    found: dict[str, object] = {}
    for line in raw.decode("utf-8", "replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("run") == run:
            if row.get("ended"):
                found.clear()
            elif "step" in row:
                found[row["step"]] = row["value"]
    return found

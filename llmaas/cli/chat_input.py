"""Lines that a user types, with editing and a history that is kept; and text that is piped in.

Law: nobody else can read the history: mode 0600, under $XDG_STATE_HOME.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from llmaas.errors import BadRequest

try:
    import readline
except ImportError:  # a Python built without it: plain input works all the same
    readline = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
_KEEP_LINES = 1000
QUOTE = '"""'
"""Begins and ends a message of several lines."""
_MORE = "... "


def history_path() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "llmaas" / "chat_history"


class Lines:
    """Reads lines from the terminal. Use it as a context manager: leaving it saves the history."""

    def __enter__(self) -> Lines:
        if readline is not None:
            with suppress(OSError):
                readline.read_history_file(history_path())
            readline.set_history_length(_KEEP_LINES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if readline is None or not readline.get_current_history_length():
            return
        path = history_path()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)
        except OSError as failure:
            log.warning("cannot save the history in %s: %s", path, failure)

    def read(self, prompt: str) -> str | None:
        """One line without its newline, or the lines between two QUOTEs; None at Ctrl-D. Ctrl-C discards what was
        begun, and asks again."""
        while True:
            try:
                return _read_message(prompt)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()


def _read_message(prompt: str) -> str:
    line = input(prompt)
    if not line.lstrip().startswith(QUOTE):
        return line
    text = line.lstrip().removeprefix(QUOTE)
    while not text.rstrip().endswith(QUOTE):
        text += "\n" + input(_MORE)
    return text.rstrip().removesuffix(QUOTE).strip("\n")


def read_piped() -> str:
    """All of stdin. Raises BadRequest if it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"standard input is not UTF-8 text (byte {error.start})", hint="Pipe in text.") from None

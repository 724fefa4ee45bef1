"""The parser of command lines: argparse, and a word of help for a name that is nearly right.

Law: nothing is guessed: a wrong name stays an error, exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose sub-parsers are of this class, too (argparse makes them so)."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        if meant := sorted({near for wrong in _wrong_words(message) if (near := self._nearest(wrong))}):
            print(f"  hint: Did you mean {' and '.join(meant)}?", file=sys.stderr)
        self.exit(2)

    def _nearest(self, wrong: str) -> str | None:
        """The flag or command that ``wrong`` begins or resembles; None if there is none, or if it is one itself."""
        known = sorted(set(self._names()))
        if wrong in known:
            return None
        longer = [name for name in known if wrong.startswith("--") and name.startswith(f"{wrong}-")]
        return next(iter(longer or difflib.get_close_matches(wrong, known, n=1)), None)

    def _names(self) -> Iterator[str]:
        """All flags and commands of this parser and of those below it."""
        for action in self._actions:
            yield from (name for name in action.option_strings if len(name) > 2)
            if isinstance(action, argparse._SubParsersAction):
                for name, parser in action.choices.items():
                    yield name
                    yield from parser._names()


def _wrong_words(message: str) -> list[str]:
    """The words that argparse complains of."""
    if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return [word.partition("=")[0] for word in match[1].split() if word.startswith("-")]
    match = re.search(r"invalid choice: '([^']*)'", message)
    return [match[1]] if match else []

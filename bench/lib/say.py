"""Lines for people, on stderr."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)

"""The line on stderr that says how long a model will take to be there.

Law: on a terminal only, and gone when the model is there.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from llmaas.cli.out import dim, printable

if TYPE_CHECKING:
    from llmaas.calls import Loading

LINE_AGAIN = "\r\x1b[K"
"""Empties a terminal's line."""


class LoadingLine:
    """To be called with each ``Loading``."""

    def __init__(self) -> None:
        self._shown = False

    def __call__(self, loading: Loading) -> None:
        left = "" if loading.expected_s is None else f", about {math.ceil(loading.expected_s)} s more"
        text = dim(f"loading {printable(loading.model)}{left}", sys.stderr)
        print(f"{LINE_AGAIN}{text}", end="", file=sys.stderr, flush=True)
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            print(LINE_AGAIN, end="", file=sys.stderr, flush=True)
            self._shown = False

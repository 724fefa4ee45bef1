"""Loads the C libraries of llmaas: small ones, built beside the Python files that use them. They may be missing.

Law: a library is used only if it fits the Python code that calls it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def load_library(beside: str, name: str, fits: Callable[[ctypes.CDLL], bool]) -> ctypes.CDLL | None:
    """The library ``name`` in the folder of the file ``beside``; None if it was not built or does not fit.

    ``fits`` may raise AttributeError, since a library left over from another version may lack functions. A library
    that does not fit stays in memory: ctypes never unloads one.
    """
    for suffix in EXTENSION_SUFFIXES:
        try:
            library = ctypes.CDLL(str(Path(beside).with_name(name + suffix)))
            if fits(library):
                return library
        except (OSError, AttributeError):
            continue
    return None

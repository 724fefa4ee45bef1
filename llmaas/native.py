"""The C parts of llmaas: small libraries that are built beside the Python files that use them, and may be missing.

Law: what is loaded fits the Python side, or nothing is loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def load_library(beside: str, name: str, fits: Callable[[ctypes.CDLL], bool]) -> ctypes.CDLL | None:
    """The library ``name`` in the folder of the file ``beside``; None if it was not built, or does not fit.

    A library left over from another version may lack functions, so ``fits`` may raise AttributeError. ctypes never
    unloads one.
    """
    for suffix in EXTENSION_SUFFIXES:
        try:
            library = ctypes.CDLL(str(Path(beside).with_name(name + suffix)))
            if fits(library):
                return library
        except (OSError, AttributeError):
            continue
    return None

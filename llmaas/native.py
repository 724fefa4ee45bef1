"""Loads the C libraries of llmaas: small ones, built beside the Python files that use them. They may be missing.

Law: a library is used only if it fits the Python code that calls it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

LIBRARIES = {
    "kvchunks/codec/_kvcodec": "chunks are coded by numpy, many times slower",
    "engine/llama/_probe": "bits of chunks are spent without knowing queries",
    "engine/llama/_steps": "small models answer some percent slower",
    "engine/llama/_dist": "answers with a temperature are some percent slower",
    "engine/llama/_cell_rows": "contexts come back at half the speed",
    "engine/llama/_tiles": "prompts are read more slowly on x86, those of the packaged model at a third of the speed",
    "engine/llama/_apart": "prompts are read some percent slower beside another busy program",
    "engine/llama/_vocab": "a model with many tokens is loaded 0.3 s later",
    "engine/llama/_map_guard": "a model file that is cut while it is served ends the daemon",
    "slots/_slots": "clients have the socket only, and no slots",
}
"""All of them: path below the package without suffix, and what is so without it."""


def missing_libraries(package: Path = Path(__file__).parent) -> list[str]:
    """Those of ``LIBRARIES`` that were not built, or that this machine cannot load."""
    return [
        path for path in LIBRARIES if load_library(str(package / path), Path(path).name, lambda library: True) is None
    ]


def load_library(
    beside: str, name: str, fits: Callable[[ctypes.CDLL], bool], *, for_all: bool = False
) -> ctypes.CDLL | None:
    """The library ``name`` in the folder of the file ``beside``; None if it was not built or does not fit.

    ``for_all``: libraries that are loaded later may call its functions by name (RTLD_GLOBAL).

    ``fits`` may raise AttributeError, since a library left over from another version may lack functions. A library
    that does not fit stays in memory: ctypes never unloads one.
    """
    mode = ctypes.RTLD_GLOBAL if for_all else ctypes.DEFAULT_MODE
    for suffix in EXTENSION_SUFFIXES:
        try:
            library = ctypes.CDLL(str(Path(beside).with_name(name + suffix)), mode=mode)
            if fits(library):
                return library
        except (OSError, AttributeError):
            continue
    return None

"""Importing one module of a package without the rest of it.

Law: a package that was imported before is left as it is. One that was not is a shell from then on: its modules can be
imported, its ``__init__`` is never run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec


@contextmanager
def without_init(name: str) -> Iterator[None]:
    """Within this, ``import NAME.MODULE`` does not run NAME's ``__init__``.

    That of llama_cpp imports what llmaas does not use: 5.5 MB and 0.14 s. It also takes llama.cpp's log for itself, so
    it must not be run later either. Does nothing if NAME is imported already, or is no package that can be found.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None:
        yield
        return
    sys.modules[name] = module_from_spec(spec)  # made, but not run
    try:
        yield
    except BaseException:
        del sys.modules[name]
        raise

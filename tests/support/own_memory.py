"""How much memory the process of the tests has."""

from __future__ import annotations

from pathlib import Path

import pytest

_ROLLUP = Path("/proc/self/smaps_rollup")
needs_rollup = pytest.mark.skipif(not _ROLLUP.exists(), reason="the kernel does not tell")


def anonymous() -> int:
    """Bytes of this process that are in memory and in no file."""
    lines = _ROLLUP.read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))

"""What every test of the store may ask for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for a store; it does not exist yet."""
    return tmp_path / "store"


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is such a thing: hundreds of stores are quicker there."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="llmaas-", dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield Path(folder)

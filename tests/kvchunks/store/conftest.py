"""What every test of the store may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for a store; it does not exist yet."""
    return tmp_path / "store"

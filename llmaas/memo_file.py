"""Small JSON files in which the daemon keeps what it has learned, and may lose it.

Law: such a file that cannot be read is an empty one. What is kept in it is bounded by the number of entries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_entries(path: Path) -> dict[str, Any]:
    """The object in the file; an empty one if there is none, or it cannot be read or understood."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def with_newest(entries: Mapping[str, Any], key: str, value: object, most: int) -> dict[str, Any]:
    """The entries with this one last; of more than ``most`` the first ones go.

    >>> with_newest({"a": 1, "b": 2, "c": 3}, "a", 4, most=2)
    {'c': 3, 'a': 4}
    """
    others = {name: entry for name, entry in entries.items() if name != key}
    return dict(list({**others, key: value}.items())[-most:])

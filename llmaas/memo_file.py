"""Small JSON files in which the daemon keeps what it has learned, and may lose it.

Law: such a file that cannot be read is an empty one, and one that cannot be written stays as it is. What is kept in it
is bounded by the number of entries.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmaas.regular_file import replace_file

_log = logging.getLogger(__name__)


def read_entries(path: Path) -> dict[str, Any]:
    """The object in the file; an empty one if there is none, or it cannot be read or understood."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_entries(path: Path, entries: Mapping[str, Any], what: str) -> None:
    """Replace the file; ``what`` names its contents for the log, if that fails."""
    try:
        replace_file(path, (json.dumps(entries, indent=1) + "\n").encode(), 0o600)
    except OSError as error:
        _log.warning("cannot keep %s in %s: %s", what, path, error.strerror)


def with_newest(entries: Mapping[str, Any], key: str, value: object, most: int) -> dict[str, Any]:
    """The entries with this one last; of more than ``most`` the first ones go.

    >>> with_newest({"a": 1, "b": 2, "c": 3}, "a", 4, most=2)
    {'c': 3, 'a': 4}
    """
    others = {name: entry for name, entry in entries.items() if name != key}
    return dict(list({**others, key: value}.items())[-most:])

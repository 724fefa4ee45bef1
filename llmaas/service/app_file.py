"""The file ``apps.json`` in the store's folder: apps that have a token, the hashes of these, and quotas of apps.

Law: it is replaced as a whole, and is on disk before anybody is told so. A file that is not what was written is an
error, never an empty one: without it, every app's name would be free to take.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmaas.errors import StoreFailed
from llmaas.frozen import frozen
from llmaas.records import NO_APP_QUOTA, AppId, AppQuota
from llmaas.regular_file import open_regular, replace_file

FILE = "apps.json"
VERSION = 1
_MOST_BYTES = 4 << 20


@frozen
class AppRow:
    """An app that has a token, or quotas of its own."""

    app: AppId
    token_hash: bytes | None = None
    """The token's SHA-256; None: it has none."""
    created: float | None = None
    """When the token was made, in seconds since 1970."""
    quota: AppQuota = NO_APP_QUOTA


class AppsDamaged(StoreFailed):
    """The file of apps is not what was written, or others may write to it."""

    hint = (
        "Put a backup of the file in its place. Without one, move it away: then no app has a token, and every program "
        "can be any app of its user until 'llmaas app add' gives new tokens."
    )


def read_apps(path: Path) -> list[AppRow]:
    """What the file holds; nothing if there is none. Raises AppsDamaged."""
    try:
        with open_regular(path) as file:
            info = os.fstat(file.fileno())
            data = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AppsDamaged(f"the file of apps {path} cannot be read: {error.strerror}") from None
    if info.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(info.st_mode) & 0o022:
        why = "other users may write to the file of apps"
        raise AppsDamaged(f"{why} {path}", hint=f"See to it that nobody has, then: chmod 600 {path}")
    try:
        return _rows(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise AppsDamaged(f"the file of apps {path} is damaged") from None


def write_apps(path: Path, rows: Iterable[AppRow]) -> None:
    """Replace the file. Raises StoreFailed; then the file is as it was."""
    body = {str(row.app): _as_map(row) for row in rows}
    data = json.dumps({"version": VERSION, "apps": body, "checksum": _checksum(body)}, indent=1).encode()
    try:
        replace_file(path, data, 0o600)
    except OSError as error:
        raise StoreFailed(
            f"the file of apps {path} cannot be written: {error.strerror}",
            hint="Free space, or see what 'llmaas doctor' says; then try again.",
        ) from None


def _rows(found: Any) -> list[AppRow]:
    if found["version"] != VERSION or found["checksum"] != _checksum(found["apps"]):
        raise ValueError
    return [
        AppRow(
            AppId(app),
            bytes.fromhex(row["token_sha256"]) if "token_sha256" in row else None,
            row.get("created"),
            AppQuota(**row.get("quota", {})),
        )
        for app, row in found["apps"].items()
    ]


def _as_map(row: AppRow) -> dict[str, object]:
    quota = {name: value for name, value in asdict(row.quota).items() if value is not None}
    found: dict[str, object] = {"quota": quota} if quota else {}
    if row.token_hash is not None:
        found |= {"token_sha256": row.token_hash.hex(), "created": row.created}
    return found


def _checksum(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

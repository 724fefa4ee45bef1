"""Backups: all contexts of an app in a folder of archives, each of which holds what the ones before lack.

Law: an archive is there, whole, before the folder's index says so; the index is replaced at once. An index that is
missing or damaged costs space (everything is written once more), never a context.

    DIR/00000001.archive   the first backup
    DIR/00000002.archive   contexts that have changed since, and those of their chunks that are new
    DIR/index              JSON: which chunks are in the archives, and which contexts there were at the last backup

The index names chunks and contexts by hashes, with a salt of its own. Who can read it, and guesses the beginning of a
conversation to the letter, can find out that it is there; so can who sees the sizes of a chat's messages anywhere.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from llmaas.records import ChunkKey, ContextInfo, ExportedContext
from llmaas.regular_file import open_regular, replace_file

INDEX = "index"
_VERSION = 1
_ARCHIVE = re.compile(r"(\d{8})\.archive")
_HASH = 16


@dataclass(slots=True)
class BackupIndex:
    """What the archives of a folder hold. ``last``: number of the last one that this knows of."""

    salt: bytes = field(default_factory=lambda: os.urandom(_HASH))
    last: int = 0
    chunks: set[str] = field(default_factory=set)
    contexts: dict[str, str] = field(default_factory=dict)
    """Of each context that there was at the last backup, by the hash of its name: the hash of what it held."""
    app: str = ""
    """The hash of the app whose contexts these are."""

    def chunk(self, key: ChunkKey) -> str:
        return self._hash(b"chunk", key)

    def name(self, name: str) -> str:
        return self._hash(b"name", name.encode("utf-8", "surrogatepass"))

    def content(self, info: ContextInfo, context: ExportedContext) -> str:
        parts = [f"{context.vocab}|{context.model}|{info.adapter}|{info.ttl}".encode("utf-8", "surrogatepass")]
        for span in context.spans:
            words = f"{span.role}|{span.open}|{span.text}".encode("utf-8", "surrogatepass")
            parts += [span.tokens, words]
        return self._hash(b"content", *parts)

    def _hash(self, kind: bytes, *parts: bytes) -> str:
        hasher = blake2b(digest_size=_HASH, key=self.salt, person=kind)
        for part in parts:
            hasher.update(len(part).to_bytes(8, "little"))
            hasher.update(part)
        return hasher.hexdigest()


def archives(folder: Path) -> list[Path]:
    """The archives of a folder, the oldest first."""
    return [path for _, path in sorted(_numbered(folder))]


def next_archive(folder: Path) -> Path:
    number = max((number for number, _ in _numbered(folder)), default=0) + 1
    return folder / f"{number:08}.archive"


def number_of(path: Path) -> int:
    match = _ARCHIVE.fullmatch(path.name)
    return int(match[1]) if match else 0


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir():
        if _ARCHIVE.fullmatch(path.name):
            yield number_of(path), path


def read_index(folder: Path) -> BackupIndex | None:
    """None if there is none, or if it is damaged or does not know the newest archive."""
    try:
        with open_regular(folder / INDEX) as file:
            found = json.loads(file.read())
        last = int(found["last"])
        if found["version"] != _VERSION or last != max((n for n, _ in _numbered(folder)), default=0):
            return None
        contexts = {str(name): str(content) for name, content in found["contexts"].items()}
        salt, chunks = bytes.fromhex(found["salt"]), set(map(str, found["chunks"]))
        return BackupIndex(salt, last, chunks, contexts, str(found["app"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_index(folder: Path, index: BackupIndex) -> None:
    """Raises OSError."""
    made = {
        "version": _VERSION,
        "salt": index.salt.hex(),
        "last": index.last,
        "app": index.app,
        "contexts": index.contexts,
        "chunks": sorted(index.chunks),
    }
    replace_file(folder / INDEX, json.dumps(made, indent=0).encode(), 0o600)

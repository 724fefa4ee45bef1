"""One registered model: its name, its file, and the settings that the daemon has for it.

Law: plain values. A name is safe as the name of a folder.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any

from llmaas.errors import BadRequest, UnknownModel
from llmaas.frozen import frozen
from llmaas.records import SHORT_NAME

SETTINGS = (
    "cells",
    "least_cells",
    "pool_bytes",
    "disk_bytes",
    "bits",
    "sequences",
    "threads",
    "max_running",
    "repack",
    "full_windows",
    "devices",
    "gpu_layers",
    "held",
    "adapters",
    "embedding_tokens",
)
"""Settings of the daemon that a model may have of its own. ``cells`` bounds the length of its contexts, too."""
MAIN_STORE = ""
"""The ``store`` of the model that has the data folder itself: the first that was registered."""
_RESERVED = ("all", "default", "none", ".", "..")


@frozen
class ModelEntry:
    """A model by its ``name``. ``file``: the GGUF file, or the first of several that it was split into."""

    name: str
    file: Path
    size_bytes: int
    """Of all its files."""
    store: str = MAIN_STORE
    """The folder of its contexts, within the data folder."""
    source: str = ""
    """Where the file was loaded from; "" if it was there."""
    sha256: str = ""
    """Of the file, if it was loaded; it was checked then."""
    pinned: bool = False
    """Whether it stays in memory while several models are served."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Its own settings, as flags take them."""

    def as_map(self) -> dict[str, Any]:
        return {**asdict(self), "file": str(self.file), "settings": dict(self.settings)}


def entry_of(found: Any) -> ModelEntry:
    """From what ``as_map`` made. Raises ValueError, TypeError, KeyError, BadRequest."""
    known = {each.name for each in fields(ModelEntry)}
    values = {name: value for name, value in found.items() if name in known}
    settings = {str(name): str(value) for name, value in values.pop("settings", {}).items() if name in SETTINGS}
    texts = {name: str(values.pop(name, "")) for name in ("store", "source", "sha256")}
    name, file, size = str(values["name"]), Path(str(values["file"])), int(values["size_bytes"])
    check_name(name)
    if not file.is_absolute() or ".." in Path(texts["store"]).parts or Path(texts["store"]).is_absolute():
        raise ValueError("a path leads elsewhere")
    return ModelEntry(name, file, size, **texts, pinned=values.get("pinned") is True, settings=settings)


def check_name(name: str) -> None:
    """Raises BadRequest unless a model may be called so."""
    if not re.fullmatch(SHORT_NAME, name) or name in _RESERVED or name.startswith("."):
        raise BadRequest(
            f"a model's name has 1 to 64 characters of A-Z a-z 0-9 . _ -, and is none of {', '.join(_RESERVED[:3])}; "
            f"not {reprlib.repr(name)}"
        )


@frozen
class Models:
    """All registered models, in the order in which they were registered. ``default``: the name of one of them; "" if
    there is none."""

    entries: tuple[ModelEntry, ...] = ()
    default: str = ""

    def find(self, name: str) -> ModelEntry:
        """The model of that name; of several that are served, "" is the default one. Raises UnknownModel.

        As clients of HTTP do, a model may also be called by its file's name, with ``.gguf`` or without.
        """
        name = name or self.default
        for entry in self.entries:
            if entry.name == name:
                return entry
        for entry in self.entries:
            if name in (entry.file.name, entry.file.stem):
                return entry
        there = ", ".join(entry.name for entry in self.entries) or "none"
        raise UnknownModel(f"there is no model {reprlib.repr(name)}; there are: {there}")

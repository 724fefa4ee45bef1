"""The registry: the file ``models.json`` in the data folder, with the models that commands and requests may name.

Law: it is replaced as a whole, under a lock, so that two commands at once lose nothing. A file that cannot be read is
an error that says so, never an empty registry. Model files are not touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from llmaas.data_folder import FILES, REGISTRY, STORES
from llmaas.errors import BadRequest, LlmaasError, MachineError
from llmaas.model_files.entry import MAIN_STORE, ModelEntry, Models, check_name
from llmaas.model_files.entry import entry_of as read_entry
from llmaas.regular_file import open_regular, replace_file

VERSION = 1
_MOST_BYTES = 1 << 20
MOST_MODELS = 64


class RegistryDamaged(MachineError):
    """The registry is not what was written."""

    hint = "Put it in order, or move it away and register the models again ('llmaas model add'); model files stay."


class ModelRegistry:
    """The registry in the data folder ``root``, which is made (0700) when something is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / REGISTRY

    @property
    def folder(self) -> Path:
        """Where files that are loaded go."""
        return self.root / FILES

    def store_of(self, entry: ModelEntry) -> Path:
        """The folder of a model's contexts."""
        return self.root / entry.store if entry.store else self.root

    def read(self) -> Models:
        """All models; none if there is no file. Raises RegistryDamaged."""
        try:
            with open_regular(self.path) as file:
                data = file.read(_MOST_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return Models()
        except OSError as error:
            raise RegistryDamaged(f"the registry of models {self.path} cannot be read: {error.strerror}") from None
        try:
            found = json.loads(data)
            if found["version"] != VERSION:
                raise RegistryDamaged(f"{self.path} is of version {found['version']}; this llmaas knows {VERSION}")
            entries = tuple(map(read_entry, found["models"]))
            default = str(found["default"])
        except RegistryDamaged:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, LlmaasError) as error:
            raise RegistryDamaged(f"the registry of models {self.path} is damaged: {error}") from None
        if len({entry.name for entry in entries}) != len(entries):
            raise RegistryDamaged(f"the registry of models {self.path} is damaged: a name is there twice")
        names = [entry.name for entry in entries]
        return Models(entries, default if default in names else next(iter(names), ""))

    def add(self, entry: ModelEntry) -> ModelEntry:
        """Register a model, in place of the one of its name, whose contexts it then has. The first one is the default.
        Returns it with its store. Raises BadRequest, RegistryDamaged, MachineError."""
        check_name(entry.name)
        made = entry

        def change(models: Models) -> Models:
            nonlocal made
            before = next((each for each in models.entries if each.name == entry.name), None)
            if before is None and len(models.entries) >= MOST_MODELS:
                raise BadRequest(f"{MOST_MODELS} models are registered already", hint="Forget one ('llmaas model rm').")
            made = replace(entry, store=self._store(models, entry.name) if before is None else before.store)
            others = [each if each.name != entry.name else made for each in models.entries]
            entries = tuple(others if before is not None else [*others, made])
            return Models(entries, models.default or entry.name)

        self._change(change)
        return made

    def remove(self, name: str) -> ModelEntry:
        """Forget a model; its file and its contexts stay. If it was the default one, the first of the others is. Raises
        UnknownModel, RegistryDamaged, MachineError."""
        gone: list[ModelEntry] = []

        def change(models: Models) -> Models:
            gone.append(models.find(name))
            entries = tuple(each for each in models.entries if each.name != gone[0].name)
            names = [each.name for each in entries]
            return Models(entries, models.default if models.default in names else next(iter(names), ""))

        self._change(change)
        return gone[0]

    def set_default(self, name: str) -> ModelEntry:
        """Let requests that name no model be for this one. Raises UnknownModel, RegistryDamaged, MachineError."""
        found: list[ModelEntry] = []

        def change(models: Models) -> Models:
            found.append(models.find(name))
            return replace(models, default=found[0].name)

        self._change(change)
        return found[0]

    # -- inside

    def _store(self, models: Models, name: str) -> str:
        """The one that a model of that name had before. Else the data folder itself, if no other has it, so that
        conversations from before models were registered go on."""
        own = f"{STORES}/{name}"
        taken = any(each.store == MAIN_STORE for each in models.entries) or (self.root / own).exists()
        return own if taken else MAIN_STORE

    def _change(self, change: Callable[[Models], Models]) -> None:
        with self._locked():
            models = change(self.read())
            body = {
                "version": VERSION,
                "default": models.default,
                "models": [entry.as_map() for entry in models.entries],
            }
            try:
                replace_file(self.path, (json.dumps(body, indent=1) + "\n").encode(), 0o600)
            except OSError as error:
                raise MachineError(f"cannot write {self.path}: {error.strerror}", hint="Free space.") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.root / f"{REGISTRY}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            hint = "Give another data folder with --data-dir."
            raise MachineError(f"cannot write to {self.root}: {error.strerror}", hint=hint) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # others hold it for milliseconds
            yield
        finally:
            os.close(lock)

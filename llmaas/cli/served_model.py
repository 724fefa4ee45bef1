"""Which model is served, and with which settings: one by its path, a registered one, or the packaged one.

Law: looks at the registry and at settings; opens no model. What the command line says beats what a registered model has
of its own, and that beats variables and the settings file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from llmaas.config.settings import SETTINGS, check_together
from llmaas.config.sources import LoadedConfig
from llmaas.data_folder import main_folder
from llmaas.errors import ConfigError
from llmaas.model_files.entry import ModelEntry
from llmaas.model_files.registry import ModelRegistry

ALL = ("all",)


def several(found: LoadedConfig) -> list[ModelEntry]:
    """The models that are served with a process each; empty if it is one model. Raises ConfigError, UnknownModel."""
    wanted = found.config.models
    if wanted is None or (wanted != ALL and len(wanted) == 1):
        return []
    models = ModelRegistry(found.config.data_dir).read()
    entries = list(models.entries) if wanted == ALL else [models.find(name) for name in wanted]
    if not entries:
        raise ConfigError(
            f"setting models ({found.origins['models']}) is all, and no model is registered",
            hint="Register some with 'llmaas model add NAME FILE'.",
        )
    if wanted == ALL and len(entries) == 1:
        return []
    if found.config.slot_folder is not None:
        raise ConfigError(
            f"setting slot_folder ({found.origins['slot_folder']}) is for a daemon with one model; several are served",
            hint="Leave it out: the process of each model makes slots of its own, as many as the setting slots says.",
        )
    return entries


def one_model(found: LoadedConfig) -> LoadedConfig:
    """The configuration with the registered model that is to be served, if it is one: with its path, the folder of its
    contexts and its own settings. Raises ConfigError, UnknownModel, RegistryDamaged."""
    config = found.config
    registry = ModelRegistry(config.data_dir)
    if config.models is not None:
        name = "" if config.models == ALL else config.models[0]
    elif config.model is not None or found.config.data_dir != main_folder(found.config.data_dir):
        return found
    else:
        name = ""
    models = registry.read()
    if not models.entries and config.models in (None, ALL):
        return found
    return with_entry(found, registry, models.find(name))


def with_entry(found: LoadedConfig, registry: ModelRegistry, entry: ModelEntry) -> LoadedConfig:
    """The configuration for this registered model. Raises ConfigError."""
    origin = f"model {entry.name}"
    values: dict[str, Any] = {"model": entry.file, "data_dir": registry.store_of(entry)}
    for name, raw in entry.settings.items():
        if found.origins[name].startswith("flag "):
            continue
        try:
            values[name] = SETTINGS[name].kind.read(raw, Path.cwd())
        except ValueError:
            allowed = SETTINGS[name].kind.allowed
            raise ConfigError(f"setting {name} ({origin}) is {raw!r}; it must be {allowed}") from None
    config = dataclasses.replace(found.config, **values)
    origins = {**found.origins, **dict.fromkeys(values, origin)}
    check_together(config, origins)
    return dataclasses.replace(found, config=config, origins=origins, served_as=entry.name)

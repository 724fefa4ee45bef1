"""The doctor's look at registered models: whether their files are there, and whole.

Law: reads the heads of files and loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmaas.cli.doctor.finding import Finding
from llmaas.cli.out import human_bytes
from llmaas.config.settings import Config
from llmaas.data_folder import main_folder
from llmaas.errors import ModelUnreadable
from llmaas.model_files.gguf import examine_files
from llmaas.model_files.registry import ModelRegistry


def check_models(config: Config) -> Iterator[Finding]:
    """Nothing if no model is registered. Raises RegistryDamaged."""
    models = ModelRegistry(main_folder(config.data_dir)).read()
    for entry in models.entries:
        name = f"{entry.name} (default)" if entry.name == models.default else entry.name
        try:
            _, size = examine_files(entry.file)
        except ModelUnreadable as error:
            yield Finding(
                "models", "fail", f"{name}: {error.message}", f"'llmaas model add {entry.name} FILE' mends it."
            )
            continue
        changed = "" if size == entry.size_bytes else f"; it was {human_bytes(entry.size_bytes)} when it was registered"
        yield Finding("models", "warn" if changed else "ok", f"{name}: {human_bytes(size)}{changed}")

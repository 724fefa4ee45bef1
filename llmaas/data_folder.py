"""The data folder: what is in it, and which one the store of a model belongs to.

Law: pure but for looking whether a file is there. All that belongs to the data folder as a whole, such as the master
key beside it, is found from each of its stores.

    DATA_DIR               the store of the model that was there first
    DATA_DIR/models.json   the registry of models
    DATA_DIR/models        model files that were loaded from the web
    DATA_DIR/model-stores  the stores of the other models, each in a folder of the model's name
"""

from __future__ import annotations

from pathlib import Path

REGISTRY = "models.json"
FILES = "models"
STORES = "model-stores"


def main_folder(store: Path) -> Path:
    """The data folder that ``store`` is in, or that it is."""
    if store.parent.name == STORES and (store.parent.parent / REGISTRY).exists():
        return store.parent.parent
    return store


def beside(store: Path, ending: str) -> Path:
    """A file beside the data folder, so that a copy of the folder lacks it.

    >>> str(beside(Path("/srv/llmaas"), ".key"))
    '/srv/llmaas.key'
    """
    main = main_folder(store)
    return main.with_name(main.name + ending)

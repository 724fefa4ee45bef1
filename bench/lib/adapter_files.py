"""LoRA adapters of random weights, for benches and tests: GGUF files (ggml's docs/gguf.md).

Law: nothing but numpy is needed: the format is a header and rows of float32.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_U32, _F32, _TEXT = 4, 6, 8
_ALIGNMENT = 32
META: dict[str, str | float | int] = {
    "general.type": "adapter",
    "general.architecture": "llama",
    "adapter.type": "lora",
    "adapter.lora.alpha": 8.0,
}
SMOLLM2 = {f"blk.{layer}.attn_v.weight": (576, 192) for layer in range(30)}
"""Some weights of SmolLM2-135M, as (inputs, outputs)."""
_ALL = {
    "attn_q": (576, 576),
    "attn_k": (576, 192),
    "attn_v": (576, 192),
    "attn_output": (576, 576),
    "ffn_gate": (576, 1536),
    "ffn_up": (576, 1536),
    "ffn_down": (1536, 576),
}
ALL_OF_SMOLLM2 = {f"blk.{layer}.{name}.weight": shape for layer in range(30) for name, shape in _ALL.items()}


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: str | float | int) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    return struct.pack("<If", _F32, value) if isinstance(value, float) else struct.pack("<II", _U32, value)


def write_gguf(
    path: Path,
    seed: int,
    *,
    weights: Mapping[str, tuple[int, int]] = SMOLLM2,
    rank: int = 4,
    meta: Mapping[str, str | float | int] | None = None,
    extra: tuple[int, ...] = (),
) -> Path:
    """Write a random adapter of ``weights`` to ``path`` and return it.

    ``meta`` replaces values of META. ``extra``: sizes of dimensions that each tensor has too many, for a broken file.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    for name, (n_in, n_out) in weights.items():
        tensors[f"{name}.lora_a"] = rng.normal(0, 0.1, (*extra, rank, n_in)).astype(np.float32)
        tensors[f"{name}.lora_b"] = rng.normal(0, 0.1, (*extra, n_out, rank)).astype(np.float32)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(META))]
    head += [_text(key) + _value((meta or {}).get(key, value)) for key, value in META.items()]
    offset = 0
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        head += [_text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)]
        offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    raw = b"".join(head)
    raw += bytes(-len(raw) % _ALIGNMENT)
    for tensor in tensors.values():
        raw += tensor.tobytes() + bytes(-tensor.nbytes % _ALIGNMENT)
    path.write_bytes(raw)
    return path

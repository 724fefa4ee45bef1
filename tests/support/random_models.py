"""Models of some hundred kilobytes with random weights: they compute nonsense, in every way that real ones do."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmaas.kv_arrays import F32
from tests.support.tiny_models import sentencepiece_tokens

WIDTH, INNER, HEADS, HEAD_DIM, KV_HEADS = 64, 96, 4, 16, 2
_U32, _I32, _F32, _TEXT, _LIST = 4, 5, 6, 8, 9
_FORMATS = {_U32: "<I", _I32: "<i", _F32: "<f"}

Meta = dict[str, tuple[int, Any]]
"""Metadata: type and value of each key. A list's value is (type of its items, items)."""
Tensors = dict[str, F32]


def _meta(arch: str, layers: int, **more: tuple[int, object]) -> Meta:
    texts, kinds = zip(*sentencepiece_tokens(), strict=True)
    meta: Meta = {"general.architecture": (_TEXT, arch), "general.name": (_TEXT, f"random {arch}")}
    sizes = {"block_count": layers, "context_length": 8192, "embedding_length": WIDTH, "feed_forward_length": INNER}
    meta |= {f"{arch}.{name}": (_U32, value) for name, value in sizes.items()}
    meta |= {f"{arch}.attention.head_count": (_U32, HEADS), f"{arch}.attention.layer_norm_rms_epsilon": (_F32, 1e-5)}
    meta |= {f"{arch}.{name.replace('__', '.')}": value for name, value in more.items()}
    words = {
        "model": (_TEXT, "llama"),
        "tokens": (_LIST, (_TEXT, list(texts))),
        "scores": (_LIST, (_F32, [-float(i) for i in range(len(texts))])),
        "token_type": (_LIST, (_I32, list(kinds))),
    }
    words |= {f"{name}_token_id": (_U32, i) for i, name in enumerate(("unknown", "bos", "eos"))}
    return meta | {f"tokenizer.ggml.{name}": value for name, value in words.items()}


class _Random:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> F32:
        return (self._rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float32)


def _ends(random: _Random) -> Tensors:
    """What comes before the first layer and after the last."""
    n_vocab = len(sentencepiece_tokens())
    return {
        "token_embd.weight": random(n_vocab, WIDTH) * 8,
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": random(n_vocab, WIDTH),
    }


def _feed_forward(random: _Random, layer: str) -> Tensors:
    tensors = {f"{layer}.ffn_{name}.weight": random(INNER, WIDTH) for name in ("gate", "up")}
    norms = {f"{layer}.{name}_norm.weight": np.ones(WIDTH, np.float32) for name in ("attn", "ffn")}
    return tensors | norms | {f"{layer}.ffn_down.weight": random(WIDTH, INNER)}


def _attention(random: _Random, layer: str) -> Tensors:
    return {
        f"{layer}.attn_q.weight": random(HEADS * HEAD_DIM, WIDTH),
        f"{layer}.attn_k.weight": random(KV_HEADS * HEAD_DIM, WIDTH),
        f"{layer}.attn_v.weight": random(KV_HEADS * HEAD_DIM, WIDTH),
        f"{layer}.attn_output.weight": random(WIDTH, HEADS * HEAD_DIM),
    }


def write_llama(
    path: Path,
    *,
    layers: int = 2,
    seed: int = 1,
    replaced: Mapping[str, Callable[[F32], None]] | None = None,
    pooling: int | None = None,
) -> Path:
    """A Llama. ``replaced``: functions that alter a tensor in place, by its name; ``pooling``: how its file says that
    embeddings are pooled."""
    random = _Random(seed)
    meta = _meta("llama", layers, attention__head_count_kv=(_U32, KV_HEADS), rope__dimension_count=(_U32, HEAD_DIM))
    if pooling is not None:
        meta["llama.pooling_type"] = (_U32, pooling)
    tensors = _ends(random)
    for i in range(layers):
        tensors |= _attention(random, f"blk.{i}") | _feed_forward(random, f"blk.{i}")
    for name, alter in (replaced or {}).items():
        alter(tensors[name])
    return _write(path, meta, tensors)


def write_hybrid(path: Path, *, seed: int = 3) -> Path:
    """A model with attention in some layers and a state of fixed size in the others (LFM2)."""
    random, kv = _Random(seed), (0, KV_HEADS, 0, KV_HEADS)
    meta = _meta(
        "lfm2",
        len(kv),
        attention__head_count_kv=(_LIST, (_I32, list(kv))),
        shortconv__l_cache=(_U32, 3),
        rope__freq_base=(_F32, 1e6),
    )
    tensors = _ends(random)
    tensors["token_embd_norm.weight"] = tensors.pop("output_norm.weight")
    for i, heads in enumerate(kv):
        layer = f"blk.{i}"
        tensors |= _feed_forward(random, layer)
        if heads:
            tensors |= _attention(random, layer)
            tensors |= {f"{layer}.attn_{x}_norm.weight": np.ones(HEAD_DIM, np.float32) for x in "qk"}
        else:
            shapes = {"conv": (WIDTH, 3), "in_proj": (3 * WIDTH, WIDTH), "out_proj": (WIDTH, WIDTH)}
            tensors |= {f"{layer}.shortconv.{name}.weight": random(*shape) for name, shape in shapes.items()}
    return _write(path, meta, tensors)


# -- the file's form: ggml's docs/gguf.md


def _write(path: Path, meta: Meta, tensors: Mapping[str, F32]) -> Path:
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(meta))]
    for name, (kind, value) in meta.items():
        head += [_raw(_TEXT, name), struct.pack("<I", kind), _raw(kind, value)]
    offset, data = 0, list[bytes]()
    for name, array in tensors.items():
        head += [_raw(_TEXT, name), struct.pack("<I", array.ndim), struct.pack(f"<{array.ndim}Q", *array.shape[::-1])]
        head.append(struct.pack("<IQ", 0, offset))
        data.append(array.tobytes() + bytes(-array.nbytes % 32))
        offset += len(data[-1])
    whole = b"".join(head)
    path.write_bytes(b"".join([whole, bytes(-len(whole) % 32), *data]))
    return path


def _raw(kind: int, value: Any) -> bytes:
    if kind == _TEXT:
        return struct.pack("<Q", len(value.encode())) + bytes(value.encode())
    if kind == _LIST:
        item, items = value
        return struct.pack("<IQ", item, len(items)) + b"".join(_raw(item, each) for each in items)
    return struct.pack(_FORMATS[kind], value)

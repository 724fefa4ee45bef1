"""Models of some hundred kilobytes with random weights: they compute nonsense, in every way that real ones do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmaas.kv_arrays import F32
from tests.support.gguf_files import F32 as F32_
from tests.support.gguf_files import I32, LIST, TEXT, U32, Meta, write_model
from tests.support.tiny_models import sentencepiece_tokens

WIDTH, INNER, HEADS, HEAD_DIM, KV_HEADS = 64, 96, 4, 16, 2
Tensors = dict[str, F32]


class Shape(NamedTuple):
    width: int = WIDTH
    inner: int = INNER
    heads: int = HEADS
    head_dim: int = HEAD_DIM
    kv_heads: int = KV_HEADS


SMALL = Shape()


def model_meta(arch: str, layers: int, shape: Shape = SMALL, **more: tuple[int, object]) -> Meta:
    texts, kinds = zip(*sentencepiece_tokens(), strict=True)
    meta: Meta = {"general.architecture": (TEXT, arch), "general.name": (TEXT, f"random {arch}")}
    sizes = {"block_count": layers, "context_length": 8192, "embedding_length": shape.width}
    sizes["feed_forward_length"] = shape.inner
    meta |= {f"{arch}.{name}": (U32, value) for name, value in sizes.items()}
    meta |= {
        f"{arch}.attention.head_count": (U32, shape.heads),
        f"{arch}.attention.layer_norm_rms_epsilon": (F32_, 1e-5),
    }
    meta |= {f"{arch}.{name.replace('__', '.')}": value for name, value in more.items()}
    words = {
        "model": (TEXT, "llama"),
        "tokens": (LIST, (TEXT, list(texts))),
        "scores": (LIST, (F32_, [-float(i) for i in range(len(texts))])),
        "token_type": (LIST, (I32, list(kinds))),
    }
    meta |= {f"tokenizer.ggml.{name}": value for name, value in words.items()}
    return meta | {f"tokenizer.ggml.{name}_token_id": (U32, i) for i, name in enumerate(("unknown", "bos", "eos"))}


class RandomWeights:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> F32:
        weights: F32 = (self._rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float32)
        return weights


def end_tensors(random: RandomWeights, width: int = WIDTH) -> Tensors:
    """What comes before the first layer and after the last."""
    n_vocab = len(sentencepiece_tokens())
    return {
        "token_embd.weight": random(n_vocab, width) * 8,
        "output_norm.weight": np.ones(width, np.float32),
        "output.weight": random(n_vocab, width),
    }


def feed_forward(random: RandomWeights, layer: str, shape: Shape = SMALL) -> Tensors:
    width, inner = shape.width, shape.inner
    tensors = {f"{layer}.ffn_{name}.weight": random(inner, width) for name in ("gate", "up")}
    norms = {f"{layer}.{name}_norm.weight": np.ones(width, np.float32) for name in ("attn", "ffn")}
    return tensors | norms | {f"{layer}.ffn_down.weight": random(width, inner)}


def attention(random: RandomWeights, layer: str, shape: Shape = SMALL) -> Tensors:
    width, kv_width = shape.width, shape.kv_heads * shape.head_dim
    return {
        f"{layer}.attn_q.weight": random(shape.heads * shape.head_dim, width),
        f"{layer}.attn_k.weight": random(kv_width, width),
        f"{layer}.attn_v.weight": random(kv_width, width),
        f"{layer}.attn_output.weight": random(width, shape.heads * shape.head_dim),
    }


def write_llama(
    path: Path,
    *,
    layers: int = 2,
    seed: int = 1,
    shape: Shape = SMALL,
    replaced: Mapping[str, Callable[[F32], None]] | None = None,
    pooling: int | None = None,
    more: Meta | None = None,
) -> Path:
    """A Llama. ``replaced``: functions that alter a tensor in place, by its name; ``pooling``: how its file says that
    embeddings are pooled; ``more``: further metadata."""
    random = RandomWeights(seed)
    meta = model_meta(
        "llama",
        layers,
        shape,
        attention__head_count_kv=(U32, shape.kv_heads),
        attention__key_length=(U32, shape.head_dim),
        attention__value_length=(U32, shape.head_dim),
        rope__dimension_count=(U32, shape.head_dim),
    )
    if pooling is not None:
        meta["llama.pooling_type"] = (U32, pooling)
    meta |= more or {}
    tensors = end_tensors(random, shape.width)
    for i in range(layers):
        tensors |= attention(random, f"blk.{i}", shape) | feed_forward(random, f"blk.{i}", shape)
    for name, alter in (replaced or {}).items():
        alter(tensors[name])
    return write_model(path, meta, tensors)


def write_hybrid(
    path: Path, *, seed: int = 3, shape: Shape = SMALL, pattern: Sequence[bool] = (False, True, False, True)
) -> Path:
    """A model with attention in some layers and a state of fixed size in the others (LFM2). ``pattern``: in which."""
    random, kv = RandomWeights(seed), [shape.kv_heads * attends for attends in pattern]
    meta = model_meta(
        "lfm2",
        len(kv),
        shape,
        attention__head_count_kv=(LIST, (I32, kv)),
        shortconv__l_cache=(U32, 3),
        rope__freq_base=(F32_, 1e6),
    )
    width, tensors = shape.width, end_tensors(random, shape.width)
    tensors["token_embd_norm.weight"] = tensors.pop("output_norm.weight")
    for i, heads in enumerate(kv):
        layer = f"blk.{i}"
        tensors |= feed_forward(random, layer, shape)
        if heads:
            tensors |= attention(random, layer, shape)
            tensors |= {f"{layer}.attn_{x}_norm.weight": np.ones(shape.head_dim, np.float32) for x in "qk"}
        else:
            shapes = {"conv": (width, 3), "in_proj": (3 * width, width), "out_proj": (width, width)}
            tensors |= {f"{layer}.shortconv.{name}.weight": random(*size) for name, size in shapes.items()}
    return write_model(path, meta, tensors)

"""Small models with random weights whose attention is of a less usual kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.gguf_files import F32 as F32_
from tests.support.gguf_files import U32, write_model
from tests.support.random_models import (
    HEADS,
    INNER,
    KV_HEADS,
    SMALL,
    WIDTH,
    RandomWeights,
    attention,
    end_tensors,
    feed_forward,
    model_meta,
)


def write_windowed(path: Path, *, window: int, layers: int = 7, seed: int = 7) -> Path:
    """A Gemma 3: of six layers five see only the last ``window`` tokens."""
    random = RandomWeights(seed)
    meta = model_meta(
        "gemma3",
        layers,
        attention__head_count_kv=(U32, KV_HEADS),
        attention__key_length=(U32, SMALL.head_dim),
        attention__value_length=(U32, SMALL.head_dim),
        attention__sliding_window=(U32, window),
        rope__freq_base=(F32_, 1e6),
    )
    tensors = end_tensors(random)
    tensors["token_embd.weight"] /= 8
    for i in range(layers):
        layer = f"blk.{i}"
        tensors |= attention(random, layer) | feed_forward(random, layer)
        tensors |= {f"{layer}.attn_{x}_norm.weight": np.ones(SMALL.head_dim, np.float32) for x in "qk"}
        tensors |= {f"{layer}.post_{x}_norm.weight": np.ones(WIDTH, np.float32) for x in ("attention", "ffw")}
    return write_model(path, meta, tensors)


def write_deepseek(path: Path, *, latent: bool, layers: int = 2, seed: int = 8) -> Path:
    """A DeepSeek 2 (arXiv 2405.04434). ``latent``: a token's row is one latent vector, from which llama.cpp computes K
    and V; else, as in older files, it is K and V, whose heads differ in size."""
    random, q_rank, kv_rank, nope, rope, value = RandomWeights(seed), 24, 32, 24, 8, 16
    sizes = {"head_count_kv": HEADS, "key_length": nope + rope, "value_length": value}
    if latent:
        sizes = {"head_count_kv": 1, "key_length": kv_rank + rope, "value_length": kv_rank}
        sizes |= {"key_length_mla": nope + rope, "value_length_mla": value}
    sizes |= {"q_lora_rank": q_rank, "kv_lora_rank": kv_rank}
    counts = {"count": 2, "used_count": 1, "shared_count": 1, "feed_forward_length": INNER}
    meta = model_meta(
        "deepseek2",
        layers,
        rope__dimension_count=(U32, rope),
        leading_dense_block_count=(U32, layers),
        **{f"attention__{name}": (U32, n) for name, n in sizes.items()},
        **{f"expert_{name}": (U32, n) for name, n in counts.items()},
    )
    tensors = end_tensors(random)
    for i in range(layers):
        layer = f"blk.{i}"
        tensors |= feed_forward(random, layer)
        tensors |= {
            f"{layer}.attn_q_a.weight": random(q_rank, WIDTH),
            f"{layer}.attn_q_a_norm.weight": np.ones(q_rank, np.float32),
            f"{layer}.attn_q_b.weight": random(HEADS * (nope + rope), q_rank),
            f"{layer}.attn_kv_a_mqa.weight": random(kv_rank + rope, WIDTH),
            f"{layer}.attn_kv_a_norm.weight": np.ones(kv_rank, np.float32),
            f"{layer}.attn_output.weight": random(WIDTH, HEADS * value),
        }
        if latent:
            tensors[f"{layer}.attn_k_b.weight"] = random(HEADS, kv_rank, nope)
            tensors[f"{layer}.attn_v_b.weight"] = random(HEADS, value, kv_rank)
        else:
            tensors[f"{layer}.attn_kv_b.weight"] = random(HEADS * (nope + value), kv_rank)
    return write_model(path, meta, tensors)

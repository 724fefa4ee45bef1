"""Small models with random weights whose layers keep a state instead of rows: Mamba, Granite 4's hybrid, RWKV 7,
Qwen3-Next's kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.support.gguf_files import F32 as F32_
from tests.support.gguf_files import I32, LIST, U32, write_model
from tests.support.random_models import (
    HEAD_DIM,
    HEADS,
    INNER,
    KV_HEADS,
    SMALL,
    WIDTH,
    RandomWeights,
    Tensors,
    attention,
    end_tensors,
    feed_forward,
    model_meta,
    write_hybrid,
)

_STATE, _CONV, _GROUPS = 8, 4, 1
_INSIDE = 2 * WIDTH


def write_mamba(path: Path, *, layers: int = 2, seed: int = 4, width: int = WIDTH, state: int = _STATE) -> Path:
    """A Mamba (arXiv 2312.00752): no attention at all. ``state``: values that each channel keeps."""
    random, inside, rank = RandomWeights(seed), 2 * width, width // 16
    meta = model_meta(
        "mamba",
        layers,
        SMALL._replace(width=width),
        ssm__conv_kernel=(U32, _CONV),
        ssm__inner_size=(U32, inside),
        ssm__state_size=(U32, state),
        ssm__time_step_rank=(U32, rank),
    )
    tensors = end_tensors(random, width)
    for i in range(layers):
        layer = f"blk.{i}"
        tensors |= {
            f"{layer}.attn_norm.weight": np.ones(width, np.float32),
            f"{layer}.ssm_in.weight": random(2 * inside, width),
            f"{layer}.ssm_conv1d.weight": random(inside, _CONV),
            f"{layer}.ssm_conv1d.bias": random(inside),
            f"{layer}.ssm_x.weight": random(rank + 2 * state, inside),
            f"{layer}.ssm_dt.weight": random(inside, rank),
            f"{layer}.ssm_dt.bias": random(inside),
            f"{layer}.ssm_a": -np.abs(random(inside, state)) - np.float32(0.01),
            f"{layer}.ssm_d": random(inside),
            f"{layer}.ssm_out.weight": random(width, inside),
        }
    return write_model(path, meta, tensors)


def write_granite(path: Path, *, seed: int = 5) -> Path:
    """Granite 4's kind: Mamba 2 (arXiv 2405.21060) in most layers, attention in some."""
    random, kv, heads = RandomWeights(seed), (0, KV_HEADS, 0, 0), 8
    meta = model_meta(
        "granitehybrid",
        len(kv),
        attention__head_count_kv=(LIST, (I32, list(kv))),
        rope__dimension_count=(U32, HEAD_DIM),
        ssm__conv_kernel=(U32, _CONV),
        ssm__inner_size=(U32, _INSIDE),
        ssm__state_size=(U32, 16),
        ssm__time_step_rank=(U32, heads),
        ssm__group_count=(U32, _GROUPS),
    )
    tensors = end_tensors(random)
    width = _INSIDE + 2 * _GROUPS * 16
    for i, attends in enumerate(kv):
        layer = f"blk.{i}"
        tensors |= feed_forward(random, layer)
        if attends:
            tensors |= attention(random, layer)
            continue
        tensors |= {
            f"{layer}.ssm_in.weight": random(_INSIDE + width + heads, WIDTH),
            f"{layer}.ssm_conv1d.weight": random(width, _CONV),
            f"{layer}.ssm_conv1d.bias": random(width),
            f"{layer}.ssm_dt.bias": random(heads),
            f"{layer}.ssm_a": -np.abs(random(heads, 1)) - np.float32(0.01),
            f"{layer}.ssm_d": random(heads, 1),
            f"{layer}.ssm_norm.weight": np.ones((_GROUPS, _INSIDE // _GROUPS), np.float32),
            f"{layer}.ssm_out.weight": random(WIDTH, _INSIDE),
        }
    return write_model(path, meta, tensors)


def write_rwkv(path: Path, *, layers: int = 2, seed: int = 6) -> Path:
    """An RWKV 7 (arXiv 2503.14456)."""
    random, rank = RandomWeights(seed), 8
    meta = model_meta(
        "rwkv7",
        layers,
        attention__layer_norm_epsilon=(F32_, 1e-5),
        attention__decay_lora_rank=(U32, rank),
        attention__iclr_lora_rank=(U32, rank),
        attention__value_residual_mix_lora_rank=(U32, rank),
        attention__gate_lora_rank=(U32, rank),
        wkv__head_size=(U32, WIDTH),  # ggml computes 64 at a time, and no fewer
        token_shift_count=(U32, 2),
    )
    tensors = end_tensors(random) | {"output_norm.bias": random(WIDTH) * np.float32(0.125)}
    tensors |= {f"token_embd_norm.{name}": value for name, value in _norm(random).items()}
    for i in range(layers):
        layer = f"blk.{i}"
        for norm in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            tensors |= {f"{layer}.{norm}.{name}": value for name, value in _norm(random).items()}
        for part in "wav":
            tensors[f"{layer}.time_mix_{part}0.weight"] = random(WIDTH)
        for part in "wavg":
            tensors[f"{layer}.time_mix_{part}1.weight"] = random(rank, WIDTH)
            tensors[f"{layer}.time_mix_{part}2.weight"] = random(WIDTH, rank)
        tensors[f"{layer}.time_mix_lerp_fused.weight"] = np.abs(random(6, 1, 1, WIDTH))
        for part in ("k_k", "k_a", "r_k"):
            tensors[f"{layer}.time_mix_{part}.weight"] = random(WIDTH)
        for part in ("key", "value", "receptance", "output"):
            tensors[f"{layer}.time_mix_{part}.weight"] = random(WIDTH, WIDTH)
        tensors[f"{layer}.channel_mix_lerp_k.weight"] = np.abs(random(1, 1, WIDTH))
        tensors[f"{layer}.channel_mix_key.weight"] = random(INNER, WIDTH)
        tensors[f"{layer}.channel_mix_value.weight"] = random(WIDTH, INNER)
    return write_model(path, meta, tensors)


def write_qwen(path: Path, *, layers: int = 4, seed: int = 9) -> Path:
    """Qwen3-Next's kind: gated delta nets (arXiv 2412.06464), attention in every fourth layer, and experts."""
    random, head, values, experts = RandomWeights(seed), 64, 2, 2
    keyed, valued = head, head * values
    meta = model_meta(
        "qwen3next",
        layers,
        attention__head_count_kv=(U32, KV_HEADS),
        attention__key_length=(U32, HEAD_DIM),
        attention__value_length=(U32, HEAD_DIM),
        rope__dimension_count=(U32, HEAD_DIM),
        ssm__conv_kernel=(U32, _CONV),
        ssm__inner_size=(U32, valued),
        ssm__state_size=(U32, head),
        ssm__time_step_rank=(U32, values),
        ssm__group_count=(U32, 1),
        expert_count=(U32, experts),
        expert_used_count=(U32, 1),
        expert_feed_forward_length=(U32, INNER),
        expert_shared_feed_forward_length=(U32, INNER),
    )
    tensors = end_tensors(random)
    for i in range(layers):
        layer = f"blk.{i}"
        tensors |= {f"{layer}.{x}_norm.weight": np.ones(WIDTH, np.float32) for x in ("attn", "post_attention")}
        tensors |= _experts(random, layer, experts)
        if i % 4 == 3:
            tensors |= attention(random, layer)
            tensors[f"{layer}.attn_q.weight"] = random(2 * HEADS * HEAD_DIM, WIDTH)  # and a gate
            tensors |= {f"{layer}.attn_{x}_norm.weight": np.ones(HEAD_DIM, np.float32) for x in "qk"}
            continue
        tensors |= {
            f"{layer}.attn_qkv.weight": random(2 * keyed + valued, WIDTH),
            f"{layer}.attn_gate.weight": random(valued, WIDTH),
            f"{layer}.ssm_conv1d.weight": random(2 * keyed + valued, _CONV),
            f"{layer}.ssm_dt.bias": random(values),
            f"{layer}.ssm_a": -np.abs(random(values)) - np.float32(0.01),
            f"{layer}.ssm_ba.weight": random(2 * values, WIDTH),
            f"{layer}.ssm_norm.weight": np.ones(head, np.float32),
            f"{layer}.ssm_out.weight": random(WIDTH, valued),
        }
    return write_model(path, meta, tensors)


def _experts(random: RandomWeights, layer: str, n: int) -> Tensors:
    return {
        f"{layer}.ffn_gate_inp.weight": random(n, WIDTH),
        f"{layer}.ffn_gate_exps.weight": random(n, INNER, WIDTH),
        f"{layer}.ffn_up_exps.weight": random(n, INNER, WIDTH),
        f"{layer}.ffn_down_exps.weight": random(n, WIDTH, INNER),
        f"{layer}.ffn_gate_inp_shexp.weight": random(WIDTH),
        f"{layer}.ffn_gate_shexp.weight": random(INNER, WIDTH),
        f"{layer}.ffn_up_shexp.weight": random(INNER, WIDTH),
        f"{layer}.ffn_down_shexp.weight": random(WIDTH, INNER),
    }


def _norm(random: RandomWeights) -> Tensors:
    return {"weight": np.ones(WIDTH, np.float32), "bias": random(WIDTH) * np.float32(0.125)}


RECURRENT: dict[str, Callable[[Path], Path]] = {
    "lfm2": write_hybrid,
    "mamba": write_mamba,
    "granite": write_granite,
    "rwkv": write_rwkv,
    "qwen": write_qwen,
}
"""Every kind of such models, by a short name."""

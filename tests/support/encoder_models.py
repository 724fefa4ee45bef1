"""Small models with random weights that make embeddings only, and what they compute, by numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmaas.kv_arrays import F32
from tests.support.gguf_files import BOOL, I32, LIST, TEXT, U32, Meta, write_model
from tests.support.gguf_files import F32 as F32_
from tests.support.random_models import RandomWeights, Tensors

MEAN, FIRST, LAST, RANK = 1, 2, 3, 4
WIDTH, INNER, HEADS, LONGEST = 48, 96, 3, 64
CLS, SEP, UNKNOWN = 1, 2, 3
_EPS = 1e-5
_START = "\u2581"
_ODD = ["the", "cat", "sea", "miller", "saw", "walk"]
_NORMAL, _CONTROL, _UNKNOWN_KIND = 1, 3, 2


def word_pieces() -> list[tuple[str, int]]:
    """Texts and kinds of the tokens, as GGUF files of BERTs have them: what begins a word has a mark."""
    special = [("[PAD]", _CONTROL), ("[CLS]", _CONTROL), ("[SEP]", _CONTROL), ("[UNK]", _UNKNOWN_KIND)]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?[]"]
    plain = [*letters, *(_START + letter for letter in letters), *(_START + word for word in _ODD), "ing", "ed"]
    return [*special, ("[MASK]", _CONTROL), *((text, _NORMAL) for text in plain)]


def bert_meta(layers: int, pooling: int | None) -> Meta:
    texts, kinds = zip(*word_pieces(), strict=True)
    sizes = {"block_count": layers, "context_length": LONGEST, "embedding_length": WIDTH}
    sizes |= {"feed_forward_length": INNER, "attention.head_count": HEADS}
    meta: Meta = {"general.architecture": (TEXT, "bert"), "general.name": (TEXT, "random bert")}
    meta |= {f"bert.{name}": (U32, value) for name, value in sizes.items()}
    meta |= {"bert.attention.layer_norm_epsilon": (F32_, _EPS), "bert.attention.causal": (BOOL, False)}
    if pooling is not None:
        meta["bert.pooling_type"] = (U32, pooling)
    meta |= {
        "tokenizer.ggml.model": (TEXT, "bert"),
        "tokenizer.ggml.tokens": (LIST, (TEXT, list(texts))),
        "tokenizer.ggml.token_type": (LIST, (I32, list(kinds))),
        "tokenizer.ggml.token_type_count": (U32, 2),
    }
    numbers = {"bos": CLS, "seperator": SEP, "unknown": UNKNOWN, "padding": 0}
    return meta | {f"tokenizer.ggml.{name}_token_id": (U32, number) for name, number in numbers.items()}


def bert_tensors(layers: int, seed: int = 1) -> Tensors:
    random = RandomWeights(seed)
    tensors: Tensors = {
        "token_embd.weight": random(len(word_pieces()), WIDTH) * np.float32(8),
        "position_embd.weight": random(LONGEST, WIDTH),
        "token_types.weight": random(2, WIDTH),
    }
    norms, matrices = ["token_embd_norm"], {}
    for i in range(layers):
        layer = f"blk.{i}"
        norms += [f"{layer}.attn_output_norm", f"{layer}.layer_output_norm"]
        matrices |= {f"{layer}.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        matrices |= {f"{layer}.ffn_up": (INNER, WIDTH), f"{layer}.ffn_down": (WIDTH, INNER)}
    for name in norms:
        tensors |= {f"{name}.weight": 1 + random(WIDTH) * np.float32(0.1), f"{name}.bias": random(WIDTH)}
    for name, shape in matrices.items():
        tensors |= {f"{name}.weight": random(*shape), f"{name}.bias": random(shape[0])}
    return tensors


def write_bert(path: Path, *, layers: int = 2, pooling: int | None = MEAN, tensors: Tensors | None = None) -> Path:
    """A BERT (arXiv 1810.04805)."""
    return write_model(path, bert_meta(layers, pooling), tensors or bert_tensors(layers))


def bert_vector(tensors: Tensors, tokens: Sequence[int], *, layers: int = 2, pooling: int = MEAN) -> F32:
    """What a BERT of these tensors says of these tokens, as a vector of length 1."""

    def linear(name: str, x: F32) -> F32:
        return np.asarray(x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"], np.float32)

    def norm(name: str, x: F32) -> F32:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + _EPS)
        return np.asarray(scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"], np.float32)

    n = len(tokens)
    x = tensors["token_embd.weight"][list(tokens)] + tensors["position_embd.weight"][:n]
    x = norm("token_embd_norm", x + tensors["token_types.weight"][0])
    for i in range(layers):
        layer = f"blk.{i}"
        q, k, v = (linear(f"{layer}.attn_{name}", x).reshape(n, HEADS, -1).swapaxes(0, 1) for name in "qkv")
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        seen = (weights / weights.sum(axis=2, keepdims=True) @ v).swapaxes(0, 1).reshape(n, WIDTH)
        x = norm(f"{layer}.attn_output_norm", x + linear(f"{layer}.attn_output", seen))
        inner = linear(f"{layer}.ffn_up", x)
        inner = inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3))) / 2
        x = norm(f"{layer}.layer_output_norm", x + linear(f"{layer}.ffn_down", inner))
    pooled = {MEAN: x.mean(axis=0), FIRST: x[0], LAST: x[-1]}[pooling]
    return np.asarray(pooled / np.linalg.norm(pooled), np.float32)

"""A model of a few kilobytes with random weights and a SentencePiece vocabulary (ggml's docs/gguf.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmaas.kv_arrays import F32

_N_EMBD, _N_FF, _N_HEAD = 64, 96, 2
_WORDS = [
    "the",
    "true",
    "false",
    "null",
    "name",
    "age",
    "yes",
    "no",
    "day",
    "kind",
    "cat",
    "dog",
    "\u65e5\u672c",
    "\u00e9",
]
_SIGNS = ['{"', '":', '","', '"}', '"', "{", "}", "[", "]", ":", ",", "-", ".", "\\", "\\n", '\\"', "  ", "    "]
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def sentencepiece_tokens() -> list[tuple[str, int]]:
    """Texts and types of the tokens: special ones, bytes, letters, and words with and without a space in front."""
    special = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    raw = [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    plain = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", *_WORDS, *_SIGNS, " "]
    spaced = [" " + word for word in (*_WORDS, "{", '"', "[", "a", "1")]
    texts = dict.fromkeys(text.replace(" ", "\u2581") for text in [*plain, *spaced])
    return [*special, *raw, *((text, _NORMAL) for text in texts)]


def write_sentencepiece_model(path: Path) -> Path:
    """Write a llama of one layer, whose answers are random text."""
    tokens, rng = sentencepiece_tokens(), np.random.default_rng(1)
    values = [
        ("general.architecture", _text("llama")),
        ("general.name", _text("tiny")),
        *((f"llama.{key}", _number(n)) for key, n in _SHAPE.items()),
        ("llama.attention.layer_norm_rms_epsilon", struct.pack("<If", 6, 1e-5)),
        ("tokenizer.ggml.model", _text("llama")),
        ("tokenizer.ggml.tokens", _array(8, [_raw(text) for text, _ in tokens])),
        ("tokenizer.ggml.scores", _array(6, [struct.pack("<f", -float(i)) for i in range(len(tokens))])),
        ("tokenizer.ggml.token_type", _array(5, [struct.pack("<i", kind) for _, kind in tokens])),
        *((f"tokenizer.ggml.{name}_token_id", _number(i)) for i, name in enumerate(("unknown", "bos", "eos"))),
    ]
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in _tensors(len(tokens)).items()}
    heads, at = [], 0
    for name, weight in weights.items():
        shape = struct.pack(f"<{weight.ndim}Q", *reversed(weight.shape))
        heads.append(_raw(name) + struct.pack("<I", weight.ndim) + shape + struct.pack("<IQ", 0, at))
        at += len(_padded(weight))
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(weights), len(values))
    head += b"".join(_raw(key) + value for key, value in values) + b"".join(heads)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + b"".join(map(_padded, weights.values())))
    return path


_SHAPE = {
    "block_count": 1,
    "context_length": 512,
    "embedding_length": _N_EMBD,
    "feed_forward_length": _N_FF,
    "attention.head_count": _N_HEAD,
    "rope.dimension_count": _N_EMBD // _N_HEAD,
}


def _tensors(n_vocab: int) -> dict[str, tuple[int, ...]]:
    layer = {
        "attn_norm": (_N_EMBD,),
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (_N_EMBD, _N_EMBD)),
        "ffn_norm": (_N_EMBD,),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (_N_FF, _N_EMBD)),
        "ffn_down": (_N_EMBD, _N_FF),
    }
    ends = {"token_embd": (n_vocab, _N_EMBD), "output_norm": (_N_EMBD,), "output": (n_vocab, _N_EMBD)}
    named = {**ends, **{f"blk.0.{name}": shape for name, shape in layer.items()}}
    return {f"{name}.weight": shape for name, shape in named.items()}


def _padded(weight: F32) -> bytes:
    return weight.tobytes() + b"\0" * (-weight.nbytes % 32)


def _raw(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _text(text: str) -> bytes:
    return struct.pack("<I", 8) + _raw(text)


def _number(value: int) -> bytes:
    return struct.pack("<II", 4, value)


def _array(kind: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)

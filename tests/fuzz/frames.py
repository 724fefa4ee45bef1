"""Frames and bodies that are nearly right: requests of every operation and endpoint, with some values altered.

Law: drawn from a ``random.Random`` alone, so that a seed brings back what was found.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack

from llmaas.api.wire import encode
from tests.support.scripted import HELLO

MAIL = [{"role": "user", "content": "hello"}]
REQUESTS: tuple[dict[str, Any], ...] = (
    {"op": "create", "name": "a"},
    {"op": "create", "name": "b", "system": "Be brief.", "adapter": "", "exist_ok": True},
    {"op": "append", "context": "a", "messages": MAIL, "priority": 5, "deadline_s": 2.0, "rate": 1e6},
    {"op": "append", "context": "b", "prompt": "x", "special": False, "if_n_tokens": 3},
    {"op": "generate", "context": "a", "messages": MAIL, "max_tokens": 2, "stop": ["z"], "seed": 1, "progress": True},
    {"op": "generate", "context": "b", "prompt": "y", "max_tokens": 2, "temperature": 0.5, "top_k": 3, "logprobs": 1},
    {"op": "generate", "context": "b", "messages": MAIL, "max_tokens": 2, "json_schema": '{"type":"null"}'},
    {"op": "generate", "context": "b", "messages": MAIL, "max_tokens": 2, "grammar": 'root ::= "a"'},
    {"op": "generate", "context": "a", "messages": MAIL, "max_tokens": 2, "idempotency_key": "k", "on_full": "shift"},
    {"op": "generate", "context": "a", "messages": MAIL, "max_tokens": 2, "logit_bias": [[1, 5.0]], "adapter": "red"},
    {"op": "fork", "context": "a", "name": "c", "n_messages": 1},
    {"op": "resolve", "messages": [*MAIL, {"role": "assistant", "content": "hi"}, *MAIL], "adapter": ""},
    {"op": "truncate", "context": "a", "n_tokens": 1},
    {"op": "truncate", "context": "b", "n_messages": 1},
    {"op": "migrate", "context": "a"},
    {"op": "export", "context": "a"},
    {
        "op": "import",
        "name": "d",
        "adapter": "",
        "exported": {
            "name": "a",
            "model": "m",
            "vocab": "v",
            "spans": [{"tokens": b"\1\0\0\0", "role": "user", "text": "x", "open": False}, {"tokens": b""}],
        },
    },
    {"op": "list", "limit": 3, "after": "1"},
    {"op": "show", "context": "a", "limit": 2, "after": "1"},
    {"op": "hint", "context": "b"},
    {"op": "delete", "context": "c"},
    {"op": "requests", "limit": 5, "after": "0"},
    {"op": "cancel", "request": 3},
    {"op": "cancel", "call": 5},
    {"op": "prioritize", "request": 3, "priority": 2},
    {"op": "stats", "octaves": True},
    {"op": "limit", "app": "0/x", "rate": 5.0},
    {"op": "budget", "pool_bytes": 5},
    {"op": "adapters"},
    {"op": "adapter_add", "name": "x", "path": "/dev/zero"},
    {"op": "adapter_remove", "name": "red"},
    {"op": "embed", "texts": ["x", "y"], "truncate": True},
    {"op": "list_marks"},
    {"op": "marks_of", "messages": MAIL, "roots": [bytes(16)], "answer": True},
    {"op": "ping"},
)
CHAT = {"model": "default", "messages": MAIL, "max_tokens": 2, "temperature": 0}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **CHAT, "stream": False, "n": 1, "stop": ["a"], "seed": 1, "top_p": 0.5, "logprobs": True, "top_logprobs": 2,
        "presence_penalty": 0,
        "response_format": {"type": "text"}, "tools": [TOOL], "tool_choice": "auto", "logit_bias": {"5": 1},
        "llmaas": {"priority": 5, "rate": 1e6, "deadline": 9, "progress": True}, "stream_options": {}, "user": "u",
    },
    "/v1/completions": {"model": "default", "prompt": "x", "max_tokens": 2, "echo": True, "logprobs": 1, "stop": "b"},
    "/v1/responses": {
        "model": "default", "input": [{"role": "user", "content": "x"}], "max_output_tokens": 2, "instructions": "i",
        "previous_response_id": None, "tools": [], "tool_choice": "none", "text": {"format": {"type": "text"}},
    },
    "/v1/embeddings": {
        "model": "default", "input": ["x", "y"], "encoding_format": "base64", "dimensions": 3, "user": "u",
    },
    "/api/embed": {"model": "fake", "input": ["x", "y"], "truncate": True, "dimensions": 3, "keep_alive": "5m"},
    "/api/embeddings": {"model": "fake", "prompt": "x", "keep_alive": 0},
    "/api/chat": {
        "model": "fake", "messages": MAIL, "stream": True, "options": {"num_predict": 2, "seed": 1}, "format": "",
        "keep_alive": "5m", "tools": [TOOL],
    },
    "/api/generate": {"model": "fake", "prompt": "x", "system": "s", "raw": False, "options": {"num_predict": 2}},
    "/api/show": {"model": "fake"},
}  # fmt: skip
TEXTS = (
    "", "a", "b", "user", "system", "assistant", "tools", "auto", "required", "shift", "\0", "é", "\U0001f600",
    "x" * 300, "~", "0" * 16, "../a", "<|im_end|>", "{", '{"type":"object"}', "root ::= root", "1e999",
)  # fmt: skip


def scalar(rng: random.Random) -> Any:
    match rng.randrange(9):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2:
            return rng.randrange(-3, 12)
        case 3:
            return rng.choice((-(2**63), 2**31, 2**32, 2**53 + 1, 2**63 - 1, 256, 65536))
        case 4:
            return rng.choice((0.0, -1.5, 1e308, 5e-324, 0.25, float("inf"), float("nan")))
        case _:
            return rng.choice(TEXTS)


def value(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(8) if depth else 7
    if kind == 0:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 1:
        return {
            rng.choice((*TEXTS[:8], "role", "content", "type")): value(rng, depth - 1) for _ in range(rng.randrange(3))
        }
    return scalar(rng)


def altered(rng: random.Random, fine: Any, n: int) -> Any:
    """``fine`` with ``n`` values, at any depth, replaced, left out, put in or doubled."""
    found = msgpack.unpackb(msgpack.packb(fine), strict_map_key=False)
    for _ in range(n):
        place = found
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.5:
                place = place[key]
                continue
            _alter(rng, place, key)
            break
    return found


def _alter(rng: random.Random, place: Any, key: Any) -> None:
    match rng.randrange(5):
        case 0:
            del place[key]
        case 1 if isinstance(place, dict):
            place[rng.choice(("x", "everyone", "context", "messages", "prompt", "stop", "n_tokens"))] = value(rng)
        case 2 if isinstance(place, list):
            place.extend(place[:1] * rng.randrange(1, 40))
        case _:
            place[key] = value(rng)


def request(rng: random.Random, request_id: int) -> bytes:
    """A frame with this id: the daemon must give it exactly one terminal reply."""
    frame = altered(rng, rng.choice(REQUESTS), rng.choice((0, 1, 2, 3, 4, 5)))
    body: bytes = msgpack.packb({**frame, "id": request_id})
    return struct.pack(">I", len(body)) + body


def noise(rng: random.Random) -> bytes:
    """Bytes that need not be frames: altered frames, cut ones, and lengths that lie."""
    data = bytearray(encode(HELLO) if rng.random() < 0.3 else request(rng, rng.randrange(5)))
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)

"""Whole states of the fake engine: a head, and the digest of each token.

Law: a state of which one bit was changed is refused, or is that of other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmaas.errors import EngineFailed
from llmaas.kv_arrays import Bytes
from llmaas.records import ModelInfo, StateSize

_HEAD = np.frombuffer(b"a fake engine's state of a whole sequence\0" * 3, np.uint8)
STATE = StateSize(fixed=_HEAD.size, token=8)


def as_recurrent(info: ModelInfo) -> ModelInfo:
    """The same model, if its sequences could not be cut."""
    return replace(info, chunkable=False, state=STATE, note="it pretends to be recurrent")


def state_of(digests: Sequence[int]) -> Bytes:
    return np.concatenate([_HEAD, np.array(digests, "<u8").view(np.uint8)])


def digests_of(state: Bytes, n_tokens: int) -> list[int]:
    """Raises EngineFailed for what is no state of so many tokens."""
    if state.size != STATE.of(n_tokens) or not np.array_equal(state[: _HEAD.size], _HEAD):
        raise EngineFailed(f"{state.size} bytes are no state of {n_tokens} tokens")
    return [int(digest) for digest in np.ascontiguousarray(state[_HEAD.size :]).view("<u8")]

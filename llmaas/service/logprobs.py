"""Log probabilities of tokens, from logits.

Law: pure. The distribution is the model's own, softmax of the logits at temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llmaas.calls import Logprobs, TokenLogprob
from llmaas.kv_arrays import F32

_BLOCK = 64
"""Tokens of which the likeliest is looked at first."""


def logprobs(logits: F32, token: int, n: int, piece: Callable[[int], bytes]) -> Logprobs:
    """The log probability of ``token`` and of the ``n`` likeliest tokens, by ``logits`` (n_vocab).

    Among tokens of equal probability, lower ids come first. ``piece`` gives the bytes of a token.
    """
    highest = float(logits.max())
    # Sums of 32-bit values would lose some of the smallest chances; the values themselves are exact enough.
    norm = highest + math.log(float(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)))
    top = [TokenLogprob(i, _text(piece(i)), float(logits[i]) - norm) for i in _likeliest(logits, n).tolist()]
    return Logprobs(token, _text(piece(token)), float(logits[token]) - norm, tuple(top))


def _likeliest(logits: F32, n: int) -> npt.NDArray[np.intp]:
    """The ``n`` tokens of the highest logits, those first.

    All answers of a step wait for it, so it does not sort the vocabulary: n blocks whose highest logit is at least x
    hold n tokens of at least x, and of such tokens there are few.
    """
    if n <= 0:
        return np.empty(0, np.intp)
    whole = len(logits) // _BLOCK
    least = -np.inf
    if n < whole:
        least = np.partition(logits[: whole * _BLOCK].reshape(whole, _BLOCK).max(axis=1), whole - n)[whole - n]
    found = np.flatnonzero(logits >= least)
    return found[np.argsort(-logits[found], kind="stable")[:n]]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")

"""Log probabilities of tokens, from logits.

Law: pure. The distribution is the model's own, softmax of the logits at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmaas.calls import Logprobs, TokenLogprob
from llmaas.kv_arrays import F32


def logprobs(logits: F32, token: int, n: int, piece: Callable[[int], bytes]) -> Logprobs:
    """The log probability of ``token`` and of the ``n`` likeliest tokens, by ``logits`` (n_vocab).

    Among tokens of equal probability, lower ids come first. ``piece`` gives the bytes of a token.
    """
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    best = np.argpartition(-wide, n - 1)[:n] if 0 < n < len(wide) else np.arange(len(wide))[: n or 0]
    top = sorted((-float(wide[i]), int(i)) for i in best)
    return Logprobs(
        token, _text(piece(token)), float(wide[token]), tuple(TokenLogprob(i, _text(piece(i)), -x) for x, i in top)
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")

"""Log probabilities: the likeliest tokens, without sorting the vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmaas.kv_arrays import F32
from llmaas.service.logprobs import logprobs


def name(token: int) -> bytes:
    return str(token).encode()


def logits(n_vocab: int, kind: str) -> F32:
    rng = np.random.default_rng(n_vocab)
    found: F32 = (4 * rng.standard_normal(n_vocab)).astype(np.float32)
    if kind == "equal":
        found[:] = 1.0
    elif kind == "few values":
        found = np.round(found / 4)
    elif kind == "banned":
        found[rng.random(n_vocab) < 0.9] = -np.inf
        found[-1] = 50.0
    return found


@pytest.mark.parametrize("kind", ["normal", "equal", "few values", "banned"])
@pytest.mark.parametrize("n_vocab", [1, 7, 64, 259, 1280, 1281, 49_152])
@pytest.mark.parametrize("n", [0, 1, 20])
def test_the_likeliest_tokens_are_those_of_a_sorted_vocabulary(n_vocab: int, kind: str, n: int) -> None:
    row = logits(n_vocab, kind)
    found = logprobs(row, n_vocab - 1, n, name)
    order = sorted(range(n_vocab), key=lambda i: (-row[i], i))[:n]
    assert [each.token for each in found.top] == order
    norm = math.log(math.fsum(math.exp(float(x) - float(row.max())) for x in row)) + float(row.max())
    for token, logprob in ((found.token, found.logprob), *((each.token, each.logprob) for each in found.top)):
        wanted = float(row[token]) - norm
        assert logprob == wanted or abs(logprob - wanted) < 1e-5
    assert found.text == str(n_vocab - 1)

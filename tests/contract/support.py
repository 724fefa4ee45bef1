"""Helpers of the contract tests: a reference text, and steps, loads and comparisons on any engine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Engine
from llmaas.kv_arrays import KvSlab
from llmaas.records import CHUNK_TOKENS

Logits = npt.NDArray[np.float32]


WHO = ["keeper", "old captain", "girl", "miller"]


WHAT = ["sea", "lighthouse", "storm", "fair", "snow"]


PROSE = " ".join(
    f"On day {day} the {WHO[day % 4]} walked {day * 7 % 31} miles and saw the {WHAT[day % 5]}." for day in range(80)
)


N = 4 * CHUNK_TOKENS + 30
"""Tokens of the reference context: four full chunks and the beginning of a fifth."""


ROOM = 5
"""Rounding, which differs from CPU to CPU, must stay so many times below what another context makes in the same run.

In KLD (nats) on one x86: 0.001 to 0.013 for rounding, 0.17 to 1 for another text.
"""


def text_tokens(engine: Engine, n: int = N, skip: int = 0) -> list[int]:
    tokens = engine.tokenize(PROSE, special=False, bos=False)[skip : skip + n]
    assert len(tokens) == n
    return tokens


def feed(engine: Engine, seq: int, tokens: list[int], slice_: int = CHUNK_TOKENS) -> None:
    for at in range(0, len(tokens), slice_):
        engine.step([BatchItem(seq, engine.length(seq), tokens[at : at + slice_])])


def begin(engine: Engine, n: int, samplings: list[Sampling]) -> list[BatchItem]:
    """``len(samplings)`` sequences with texts of different lengths; the items of their first decode step."""
    items = []
    for i, sampling in enumerate(samplings):
        engine.drop(i, 0)
        text = text_tokens(engine, n + 3 * i, skip=5 * i)
        feed(engine, i, text[:-1])
        engine.set_sampler(i, sampling)
        items.append(BatchItem(i, engine.length(i), text[-1:], i))
    return items


def probe(engine: Engine, seq: int = 0) -> Logits:
    """The logits after one more token, which is dropped again."""
    engine.set_sampler(seq, Sampling())
    length = engine.length(seq)
    engine.step([BatchItem(seq, length, text_tokens(engine, 1), sampler=seq)])
    logits = np.array(engine.logits(), np.float32)
    engine.drop(seq, length)
    return logits


def generate(engine: Engine, seq: int, first: int, n: int, sampler: int = 0) -> list[int]:
    tokens = [first]
    for _ in range(n):
        (drawn,) = engine.step([BatchItem(seq, engine.length(seq), tokens[-1:], sampler)])
        assert drawn is not None
        tokens.append(drawn)
    return tokens[1:]


def bounds(n: int) -> list[tuple[int, int]]:
    return [(start, min(start + CHUNK_TOKENS, n)) for start in range(0, n, CHUNK_TOKENS)]


def load_all(engine: Engine, seq: int, slabs: list[KvSlab]) -> None:
    for slab in slabs:
        engine.load(seq, engine.length(seq), slab)


def same_rows(a: KvSlab, b: KvSlab) -> bool:
    return np.array_equal(a.k, b.k) and np.array_equal(a.v, b.v)


def divergence(p: Logits, q: Logits) -> float:
    """KLD of the next-token distributions, in nats."""
    a, b = (x.astype(np.float64) - x.max() for x in (p, q))
    a, b = a - np.log(np.exp(a).sum()), b - np.log(np.exp(b).sum())
    return float((np.exp(a) * (a - b)).sum())


def assert_close(engine: Engine, got: Logits, wanted: Logits, other: Logits) -> None:
    """Equal on the fake engine. On the real one equal but for the rounding of attention sums: far less apart than
    ``wanted`` and ``other``, the logits of another context."""
    if engine.info.name == "fake":
        assert np.array_equal(got, wanted)
    else:
        assert ROOM * divergence(wanted, got) < divergence(wanted, other)

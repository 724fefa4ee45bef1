"""Compares what the model says over coded KV with what it says over the same KV uncoded.

Law: both are loaded into the same cells in the same order, and the same tokens are fed after them in the same batches.
Lossless KV that was swapped then differs by exactly nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.quality.contexts import Case, Probe
from bench.quality.engine import CACHES, ScoringEngine
from bench.quality.settings import Prefix, Setting
from llmaas.engine.llama.context import KvType
from llmaas.kv_arrays import F32, KvSlab, Queries
from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.records import CHUNK_TOKENS, LOSSLESS, ChunkKey, Precision

_KEY = ChunkKey(bytes(16))


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One probe under one setting. Arrays have a row for every token that is scored.

    ``bits``: true bits per value of the coded part. ``kld``: KL(exact || coded), nats. ``same``: the likeliest token is
    that over exact KV. ``nll``: negative log-likelihood of the token that really follows, nats. ``right``: the
    likeliest token is that one.
    """

    setting: str
    case: str
    kind: str
    task: str
    bits: float
    kld: F32
    same: npt.NDArray[np.bool_]
    nll: F32
    right: npt.NDArray[np.bool_]


_EXACT = 9
"""Digits of a float32."""


def as_row(score: Score) -> dict[str, Any]:
    """The score as JSON can hold it, nothing lost."""
    row = asdict(score)
    return (
        row
        | {name: [float(f"{value:.{_EXACT}g}") for value in row[name].tolist()] for name in ("kld", "nll")}
        | {name: row[name].astype(int).tolist() for name in ("same", "right")}
    )


def from_row(row: Mapping[str, Any]) -> Score:
    """What ``as_row`` was given."""
    floats = {name: np.array(row[name], np.float32) for name in ("kld", "nll")}
    return Score(**{**row, **floats, **{name: np.array(row[name], np.bool_) for name in ("same", "right")}})


class Lab:
    """An engine and a codec, and by name engines with llama.cpp's quantised cells to compare with."""

    def __init__(self, engine: ScoringEngine, caches: Mapping[KvType, ScoringEngine]) -> None:
        self.engine = engine
        self.codec = Codec(engine.info.geometry, engine.rope)
        self._caches = caches

    def study(self, case: Case, settings: Sequence[Setting]) -> Iterator[Score]:
        """Scores of all probes of ``case``: uncoded ("exact"), under each setting, and with each llama.cpp cache."""
        slabs, queries = self.prefill(case.tokens)
        probes = sorted(case.probes, key=lambda probe: probe.coded, reverse=True)
        exact: list[F32] = []
        for coded, group in groupby(probes, key=lambda probe: probe.coded):
            mine = list(group)
            prefix = Prefix(slabs[: coded // CHUNK_TOKENS], _until(queries, coded), self.codec)
            self._load(prefix.slabs, [LOSSLESS] * len(prefix.slabs))
            wanted = [self.ask(probe) for probe in mine]
            exact += wanted
            yield from _scores("exact", 16.0, case, mine, wanted, wanted)
            for setting in settings:
                nbytes = self._load(prefix.slabs, setting.choose(prefix))
                rows = [self.ask(probe) for probe in mine]
                yield from _scores(setting.name, self.true_bits(nbytes, coded), case, mine, wanted, rows)
        for name, engine in self._caches.items():
            engine.drop(0, 0)
            engine.feed(0, case.tokens)  # once for all probes, which cut it shorter and shorter
            yield from _scores(name, CACHES[name], case, probes, exact, [ask(engine, probe) for probe in probes])

    def prefill(self, tokens: Sequence[int]) -> tuple[list[KvSlab], Queries | None]:
        """The KV of ``tokens`` in chunks, and the queries that the engine sampled, if it can.

        The codec gets the engine's weights for keys.
        """
        self.engine.drop(0, 0)
        self.engine.feed(0, tokens)
        queries = self.engine.take_queries(0)
        self.codec.set_key_weights(self.engine.key_weights())
        return self.export(0), queries

    def export(self, start: int) -> list[KvSlab]:
        """Copies of the chunks of sequence 0 from position ``start`` on; the last may be shorter."""
        slabs = []
        length = self.engine.length(0)
        for begin in range(start, length, CHUNK_TOKENS):
            slab = self.engine.export(0, begin, min(begin + CHUNK_TOKENS, length))
            slabs.append(KvSlab(slab.k.copy(), slab.v.copy()))
        return slabs

    def encode(self, slab: KvSlab, precision: Precision, start: int) -> bytearray:
        return self.codec.encode(slab, precision, _KEY, sinks_at(start))

    def bring_back(self, payloads: Sequence[bytearray], sizes: Sequence[int]) -> None:
        """Empty sequence 0 and load the coded chunks, of ``sizes`` tokens, into it."""
        self.engine.drop(0, 0)
        for payload, n_tokens in zip(payloads, sizes, strict=True):
            slab = self.engine.blank(n_tokens)
            self.codec.decode(payload, _KEY, slab)
            self.engine.load(0, self.engine.length(0), slab)

    def ask(self, probe: Probe) -> F32:
        return ask(self.engine, probe)

    def true_bits(self, nbytes: int, n_tokens: int) -> float:
        """Bits per value of ``nbytes`` for the KV of ``n_tokens``."""
        return 16 * nbytes / (n_tokens * self.engine.info.geometry.token_bytes)

    def _load(self, slabs: Sequence[KvSlab], precisions: Sequence[Precision]) -> int:
        """Code the chunks at these precisions and load them; returns their coded bytes."""
        pairs = enumerate(zip(slabs, precisions, strict=True))
        payloads = [self.encode(slab, precision, i * CHUNK_TOKENS) for i, (slab, precision) in pairs]
        self.bring_back(payloads, [slab.n_tokens for slab in slabs])
        return sum(map(len, payloads))


def ask(engine: ScoringEngine, probe: Probe) -> F32:
    """Log-probabilities, a row for each scored token of ``probe``. Sequence 0 is cut back to the coded tokens."""
    engine.drop(0, probe.coded)
    rows = engine.force(0, probe.fed[:-1])[probe.first - 1 :]
    engine.drop(0, probe.coded)
    return rows


def kld(exact: F32, coded: F32) -> F32:
    """KL(exact || coded) of each row of log-probabilities, nats."""
    found: F32 = np.einsum("ij,ij->i", np.exp(exact), exact - coded)
    return found


def _scores(
    setting: str, bits: float, case: Case, probes: Sequence[Probe], exact: Sequence[F32], coded: Sequence[F32]
) -> Iterator[Score]:
    for probe, wanted, rows in zip(probes, exact, coded, strict=True):
        labels = np.array(probe.fed[probe.first :])
        best = rows.argmax(axis=1)
        yield Score(
            setting=setting,
            case=case.name,
            kind=case.kind,
            task=probe.task,
            bits=bits,
            kld=kld(wanted, rows),
            same=best == wanted.argmax(axis=1),
            nll=-rows[np.arange(len(labels)), labels],
            right=best == labels,
        )


def _until(queries: Queries | None, stop: int) -> Queries | None:
    """The queries of tokens before position ``stop``: those that were known when the context had that length."""
    if queries is None:
        return None
    n = int(np.searchsorted(queries.positions, stop))
    return replace(queries, positions=queries.positions[:n], values=queries.values[:n]) if n else None

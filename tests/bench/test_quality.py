"""bench.quality's own parts: a harness that is wrong would praise any codec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bench.quality.contexts import Case, Probe, Sizes, needles
from bench.quality.drift import drift
from bench.quality.engine import ScoringEngine
from bench.quality.lab import Lab, Score, kld
from bench.quality.settings import Prefix, Uniform
from bench.quality.summary import summaries
from llmaas.records import Precision


@dataclass(frozen=True)
class Lossless:
    name: str = "lossless"
    family: str = "lossless"

    def choose(self, prefix: Prefix) -> list[Precision]:
        return [Precision(16, 16)] * len(prefix.slabs)


@pytest.fixture(scope="module")
def lab(model_path: Path) -> Iterator[Lab]:
    with closing(ScoringEngine(model_path, n_cells=512, n_threads=1)) as engine:
        yield Lab(engine, {})


def test_lossless_kv_changes_nothing_and_two_bits_change_much(lab: Lab) -> None:
    tokens = tuple(range(1000, 1160))
    case = Case("numbers", "document", tokens[:128], (Probe("text", 128, tokens[128:]),))
    exact, same, eight, two = lab.study(case, [Lossless(), Uniform(8, 8), Uniform(2, 2)])
    assert exact.kld.max() == same.kld.max() == 0 and same.same.all()
    assert len(exact.kld) == 31  # all tokens that are fed, but for the first, which exact KV predicted
    assert 0 < eight.kld.mean() < 0.05
    assert two.kld.mean() > 4 * eight.kld.mean()  # measured: 12 to 15 times, with SSE, AVX2 and AVX-512
    assert 16 < same.bits < 16.01
    assert 2.3 < two.bits < 2.6


def test_scores_of_a_probe_are_those_of_feeding_its_tokens_in_one_go(lab: Lab) -> None:
    tokens = tuple(range(2000, 2100))
    lab.prefill(tokens[:64])
    rows = lab.ask(Probe("text", 64, tokens[64:], first=10))
    lab.engine.drop(0, 0)
    whole = lab.engine.force(0, tokens)[64 + 9 : 99]
    assert rows.shape == whole.shape
    assert kld(whole, rows).mean() < 0.02
    assert np.allclose(np.exp(rows).sum(axis=1), 1, atol=1e-4)


def test_a_needle_is_in_the_coded_part_and_its_answer_is_not(lab: Lab) -> None:
    (case,) = needles(lab.engine, Sizes(coded=320, scored=0, per_kind=1, asked=4), seed=1)
    document = b"".join(map(lab.engine.piece, case.tokens)).decode()
    assert len(case.tokens) % 64 == 0
    for probe in case.probes:
        asked = b"".join(map(lab.engine.piece, probe.fed[: probe.first])).decode()
        answer = b"".join(map(lab.engine.piece, probe.fed[probe.first :])).decode()
        fact = asked.splitlines()[-1]
        assert f"{fact}{answer}." in document
        assert answer not in asked


def test_chunks_stay_as_they_were_through_many_swaps(lab: Lab) -> None:
    tokens = tuple(range(3000, 3240))
    found = drift(lab, tokens, Precision(4, 4), start=100, rounds=6, scored=16)
    assert found.intact
    assert 0 < found.once < 0.2 and 0 < found.many < 0.2


def test_a_summary_weighs_contexts_alike_whatever_their_length() -> None:
    def score(setting: str, case: str, kld: float, nll: float, n: int) -> Score:
        yes, full = np.ones(n, np.bool_), np.ones(n, np.float32)
        return Score(setting, case, "chat", "text", 4.0, full * kld, yes, full * nll, yes)

    scores = [score("exact", "a", 0, 1, 10), score("exact", "b", 0, 1, 90)]
    scores += [score("coded", "a", 0.3, 1.2, 10), score("coded", "b", 0.1, 1.0, 90)]
    exact, coded = summaries(scores, {"exact": "exact", "coded": "uniform"})
    assert exact["kld"] == 0 and exact["ppl_pct"] == 0
    assert coded["kld"] == pytest.approx(0.2)
    assert coded["ppl_pct"] == pytest.approx(100 * (np.exp(0.1) - 1), abs=0.01)
    assert coded["contexts"] == {"a": pytest.approx(0.3), "b": pytest.approx(0.1)}

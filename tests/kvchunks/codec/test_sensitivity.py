"""Sensitivity: the streamed measure against whole attention matrices, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from llmaas.kv_arrays import F16, KvSlab, Queries
from llmaas.kvchunks.codec.sensitivity import FEWEST, MEMORY, ROOT, Scorer, merged
from llmaas.records import CHUNK_TOKENS, ChunkSensitivity, Geometry

F64 = npt.NDArray[np.float64]
G = Geometry(n_layer=3, k_dim=32, v_dim=48, head_dim_k=16, head_dim_v=24)
"""Two KV heads; queries have three heads for each."""
N_HEAD = 6
N_TOKENS = 150
"""Two full chunks, and one of 22 tokens."""
CHUNKS = [(0, 64), (64, 128), (128, 150)]


class World:
    """A sequence of random KV, random queries, and a coded form of the KV that errs by ``noise``."""

    def __init__(self, seed: int, noise: float = 0.1, n_tokens: int = N_TOKENS) -> None:
        rng = np.random.default_rng(seed)
        self.k = rng.normal(size=(3, n_tokens, 32)).astype(np.float16)
        self.v = rng.normal(size=(3, n_tokens, 48)).astype(np.float16)
        self.coded_k = (self.k + noise * rng.normal(size=self.k.shape)).astype(np.float16)
        self.coded_v = (self.v + noise * rng.normal(size=self.v.shape)).astype(np.float16)
        self.q = (2 * rng.normal(size=(n_tokens, 3, N_HEAD, 16))).astype(np.float16)

    def queries(self, positions: list[int]) -> Queries:
        return Queries(np.array(positions, np.int32), self.q[positions])

    def scorer(self, positions: list[int], windows: tuple[int, ...] = ()) -> Scorer:
        scorer = Scorer(G, self.queries(positions), layer_step=1, windows=windows)
        for start in reversed(range(0, self.k.shape[1], CHUNK_TOKENS)):
            scorer.add(start, self.slab(start))
        return scorer

    def slab(self, start: int) -> KvSlab:
        return _slab(self.k, self.v, start)

    def coded(self, start: int) -> KvSlab:
        return _slab(self.coded_k, self.coded_v, start)

    def measure(self, positions: list[int], start: int) -> ChunkSensitivity:
        found = self.scorer(positions).measure(start, self.slab(start), self.coded(start))
        assert found is not None
        return found

    def attention(self, positions: list[int], k: F16, v: F16) -> tuple[F64, F64]:
        """Whole softmax matrix (queries, layers, heads, tokens), and outputs (queries, layers, heads x 24)."""
        keys = np.repeat(k.reshape(3, -1, 2, 16), N_HEAD // 2, axis=2).astype(np.float64)
        values = np.repeat(v.reshape(3, -1, 2, 24), N_HEAD // 2, axis=2).astype(np.float64)
        logits = np.einsum("nlhd,lthd->nlht", self.q[positions].astype(np.float64), keys) / 4
        unseen = np.array(positions)[:, None] < np.arange(k.shape[1])
        logits = np.where(unseen[:, None, None], -np.inf, logits)
        share = np.exp(logits - logits.max(axis=3, keepdims=True))
        share /= share.sum(axis=3, keepdims=True)
        return share, np.einsum("nlht,lthd->nlhd", share, values).reshape(len(positions), 3, -1)

    def change(self, positions: list[int], k: F16, v: F16) -> F64:
        """Relative squared change of each query's attention output with this KV, mean over layers."""
        _, out = self.attention(positions, self.k, self.v)
        _, other = self.attention(positions, k, v)
        relative: F64 = (((other - out) ** 2).sum(axis=2) / (out**2).sum(axis=2)).mean(axis=1)
        return relative


def _slab(k: F16, v: F16, start: int) -> KvSlab:
    return KvSlab(k[:, start : start + CHUNK_TOKENS], v[:, start : start + CHUNK_TOKENS])


def replaced(x: F16, by: F16, start: int, stop: int) -> F16:
    x = x.copy()
    x[:, start:stop] = by[:, start:stop]
    return x


@pytest.mark.parametrize("noise", [0.02, 0.3, 3.0])
def test_a_chunk_is_measured_as_whole_attention_matrices_would(noise: float) -> None:
    world, positions = World(1, noise), [3, 40, 63, 64, 90, 127, 128, 129, 140, 149]
    for start, stop in CHUNKS[:2]:
        found = world.measure(positions, start)
        behind = [p for p in positions if p >= stop]
        weights = np.exp((np.array(behind) - 150) / MEMORY)
        for value, k, v in (
            (found.k, replaced(world.k, world.coded_k, start, stop), world.v),
            (found.v, world.k, replaced(world.v, world.coded_v, start, stop)),
        ):
            roots = world.change(behind, k, v) ** (1 / ROOT)
            assert value == pytest.approx((weights @ roots / weights.sum()) ** ROOT, rel=2e-3)
        assert found.weight == pytest.approx(weights.sum()) and found.at == 150


def test_density_is_the_mean_of_what_queries_that_can_see_a_token_give_it() -> None:
    world, positions = World(2), list(range(0, 150, 3))
    share, _ = world.attention(positions, world.k, world.v)
    for start, stop in CHUNKS[:2]:
        columns = [share[[p >= t for p in positions], :, :, t].mean() for t in range(start, stop)]
        assert world.measure(positions, start).density == pytest.approx(np.mean(columns), rel=1e-4)


def test_what_comes_back_as_it_was_changes_nothing() -> None:
    world = World(3)
    found = world.scorer([70, 80, 90, 149]).measure(0, world.slab(0), world.slab(0))
    assert found is not None and (found.k, found.v) == (0.0, 0.0)


def test_half_the_error_is_a_quarter_of_the_change() -> None:
    """So small errors add as squares do, which is what spending bits by one price relies on."""
    positions = list(range(64, 150, 5))
    whole, half = (World(4, noise).measure(positions, 0) for noise in (0.04, 0.02))
    assert half.k == pytest.approx(whole.k / 4, rel=0.05) and half.v == pytest.approx(whole.v / 4, rel=0.05)


def test_small_changes_of_chunks_add_up() -> None:
    world, starts = World(5, noise=0.05, n_tokens=256), (0, 64, 128)
    k, v = replaced(world.k, world.coded_k, 0, 192), replaced(world.v, world.coded_v, 0, 192)
    alone, together = np.zeros(2), np.zeros(2)
    for query in range(192, 256, 3):
        parts = [world.measure([query] * FEWEST, start) for start in starts]
        alone += sum(p.k for p in parts), sum(p.v for p in parts)
        together += world.change([query], k, world.v)[0], world.change([query], world.k, v)[0]
    assert alone == pytest.approx(together, rel=0.1)


def test_measurements_merge_to_what_all_their_queries_say_together() -> None:
    world, early, late = World(6), list(range(64, 100, 4)), list(range(101, 150, 6))
    first, second, both = (world.measure(p, 0) for p in (early, late, early + late))
    for together in (merged(first, second), merged(second, first)):
        got = (together.k, together.v, together.weight, together.at)
        assert got == pytest.approx((both.k, both.v, both.weight, both.at))


def test_an_old_measurement_fades_as_the_context_grows() -> None:
    old, new = ChunkSensitivity(1.0, 1.0, 0.5, 40.0, 1000), ChunkSensitivity(0.01, 0.01, 0.1, 40.0, 1000 + 10 * MEMORY)
    assert tuple(merged(old, new)) == pytest.approx(tuple(new), rel=1e-2)


def test_a_chunk_that_few_queries_lie_behind_is_not_measured() -> None:
    world = World(7)
    scorer = world.scorer([10, 127, 140, 141, 149])
    assert FEWEST == 4
    assert scorer.measure(0, world.slab(0), world.coded(0)) is not None
    assert scorer.measure(64, world.slab(64), world.coded(64)) is None


def test_layers_that_do_not_look_back_to_a_chunk_do_not_count_for_it() -> None:
    world, positions = World(8), [120, 130, 140, 149]
    near, far = (world.scorer(positions, w).measure(0, world.slab(0), world.coded(0)) for w in ((0, 50, 50), (50,) * 3))
    assert far is not None and near is not None
    assert (far.k, far.v) == (0.0, 0.0) and near.k > 0 and near.v > 0


def test_keys_that_come_back_as_nonsense_give_large_numbers_and_no_others() -> None:
    world = World(9)
    for scale in (60.0, -60.0, 0.0):
        coded = KvSlab((world.slab(0).k * np.float16(scale)), world.slab(0).v)
        found = world.scorer([70, 80, 90, 149]).measure(0, world.slab(0), coded)
        assert found is not None and 0.01 < found.k < 1e3 and found.v == 0.0


def test_queries_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Scorer(G, Queries(np.zeros(1, np.int32), np.zeros((1, 2, 6, 16), np.float16)))

"""Products with Q4_1 weights, and attention, of several tokens at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmaas.engine.base import BatchItem
from llmaas.engine.llama import tiles
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import ggml_function
from llmaas.engine.llama.tiles import LEVELS, blocks_like, dots, product, use
from tests.contract.support import Logits, assert_close, feed, probe, text_tokens
from tests.support.ggml_attention import attention, exact_attention

WEIGHTS, INPUTS = 20, 36
ATTENTION = len(LEVELS) - 1
F16, F32 = npt.NDArray[np.float16], npt.NDArray[np.float32]

pytestmark = pytest.mark.skipif(use(ATTENTION) == 0, reason="the C part was not built, or the CPU is no x86 with AVX2")
needs_avx512 = pytest.mark.skipif(use(ATTENTION) < ATTENTION, reason="the CPU has no AVX-512")


@pytest.fixture(autouse=True)
def best() -> Iterator[int]:
    yield use(ATTENTION)
    tiles.begin(ggml_function)


@pytest.fixture(params=range(1, ATTENTION), ids=LEVELS[1:ATTENTION])
def level(request: pytest.FixtureRequest) -> int:
    """With llama.cpp's attention."""
    if use(request.param) != request.param:
        pytest.skip(f"this CPU has no {LEVELS[request.param]}")
    return int(request.param)


# -- products


@pytest.mark.parametrize("threads", [1, 3])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30), m=st.integers(1, 90), n=st.integers(2, 75), k=st.integers(1, 20))
def test_any_product_has_llama_cpps_bits(seed: int, m: int, n: int, k: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    weights, inputs = blocks_like(m, k, WEIGHTS, rng), blocks_like(n, k, INPUTS, rng)
    dot = ggml_function("ggml_vec_dot_q4_1_q8_1")
    assert dot is not None
    wanted = dots(dot, weights, inputs)
    for each in range(1, use(ATTENTION) + 1):
        use(each)
        got = product(weights, inputs, threads=threads)
        assert got is not None and got.tobytes() == wanted.tobytes(), LEVELS[each]


@pytest.mark.parametrize("k", [205, 342, 512])
def test_long_rows_are_computed_with_fewer_tokens_at_once(level: int, k: int) -> None:
    rng = np.random.default_rng(k)
    weights, inputs = blocks_like(6, k, WEIGHTS, rng), blocks_like(9, k, INPUTS, rng)
    got, dot = product(weights, inputs), ggml_function("ggml_vec_dot_q4_1_q8_1")
    assert dot is not None and got is not None and got.tobytes() == dots(dot, weights, inputs).tobytes()


def test_what_is_not_for_tiles_is_left_to_llama_cpp(level: int) -> None:
    rng = np.random.default_rng(1)
    one = blocks_like(1, 4, INPUTS, rng)
    assert product(blocks_like(8, 4, WEIGHTS, rng), one) is None, "one token alone"
    longer = blocks_like(8, 513, WEIGHTS, rng), blocks_like(3, 513, INPUTS, rng)
    assert product(*longer) is None, "rows for which there is no room"
    use(0)
    assert product(blocks_like(8, 4, WEIGHTS, rng), blocks_like(3, 4, INPUTS, rng)) is None


def logits_behind(engine: LlamaEngine, seq: int) -> Logits:
    engine.drop(seq, 0)
    feed(engine, seq, text_tokens(engine, 150))
    return probe(engine, seq)


def computed(engine: LlamaEngine, steps: tuple[int, ...]) -> tuple[bytes, bytes, bytes]:
    """150 tokens in steps that end there: logits of the next, K and V."""
    tokens = text_tokens(engine, 150)
    for first, last in zip((0, *steps), (*steps, 150), strict=True):
        engine.step([BatchItem(0, first, tokens[first:last])])
    slab, logits = engine.export(0, 0, 150), probe(engine)
    engine.drop(0, 0)
    return logits.tobytes(), slab.k.tobytes(), slab.v.tobytes()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_the_model_computes_llama_cpps_bits(gguf: Path, level: int, n_threads: int) -> None:
    engine = LlamaEngine(gguf, n_cells=512, n_threads=n_threads, n_seqs=2)
    steps = (64, 66, 71)
    with_tiles = computed(engine, steps)
    use(0)
    assert computed(engine, steps) == with_tiles
    engine.close()


def test_wrong_bits_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "dots", lambda *arguments: np.zeros((11, 5), np.float32))
    tiles.begin(ggml_function)
    rng = np.random.default_rng(2)
    assert product(blocks_like(8, 4, WEIGHTS, rng), blocks_like(3, 4, INPUTS, rng)) is None


def test_a_new_process_uses_the_best_that_there_is() -> None:
    code = "import numpy; from llmaas.engine.llama import lib, tiles; rng = numpy.random.default_rng(1); "
    code += "made = [tiles.blocks_like(4, 2, size, rng) for size in (20, 36)]; assert tiles.product(*made) is not None"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_llama_cpp_that_could_not_be_asked_before_is_found_when_it_calls(gguf: Path) -> None:
    engine = LlamaEngine(gguf, n_cells=256, n_threads=2, n_seqs=1)
    use(0)
    wanted = computed(engine, (90,))
    tiles.begin(lambda name: None)
    assert use(ATTENTION) == 0
    assert computed(engine, (90,)) == wanted
    engine.close()


# -- attention


def texts(seed: int, n: int, heads: int, kv_heads: int, dk: int, dv: int, cells: int) -> tuple[F32, F16, F16, F16]:
    """``n`` tokens, each of which sees those before it, in cells of which some are others'."""
    rng = np.random.default_rng(seed)
    q = rng.normal(0, 2, (heads, n, dk)).astype(np.float32)
    k, v = (rng.normal(0, 1, (kv_heads, cells, d)).astype(np.float16) for d in (dk, dv))
    mine = np.unique([*np.flatnonzero(rng.random(cells) < 0.7), cells - 1])
    mask = np.full((n, cells), -np.inf, np.float16)
    for i in range(n):
        mask[i, mine[: max(1, len(mine) - n + i + 1)]] = 0
    return q, k, v, mask


@needs_avx512
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.sampled_from([1, 2, 3, 4, 5, 17, 64, 90]),
    kv_heads=st.integers(1, 4),
    group=st.sampled_from([1, 2, 3, 7]),
    dk=st.sampled_from([16, 64, 80, 128]),
    dv=st.sampled_from([32, 64, 112]),
    cells=st.integers(1, 300),
    threads=st.integers(1, 3),
)
def test_attention_is_what_it_should_be(
    seed: int, n: int, kv_heads: int, group: int, dk: int, dv: int, cells: int, threads: int
) -> None:
    assume(n > 1 or threads <= 2 * kv_heads)  # else it is llama.cpp's
    given = texts(seed, n, kv_heads * group, kv_heads, dk, dv, cells)
    assert np.abs(attention(*given, threads=threads) - exact_attention(*given)).max() < 3e-5


@needs_avx512
def test_it_is_more_exact_than_token_by_token() -> None:
    given = texts(1, 24, 9, 3, 64, 64, 900)
    exact = exact_attention(*given)
    here = np.abs(attention(*given, threads=2) - exact).max()
    use(0)
    assert here < np.abs(attention(*given, threads=2) - exact).max() / 100


@needs_avx512
@pytest.mark.parametrize("fewer", [1, 4, 30, 55, 58, 59])
def test_other_tokens_beside_it_change_no_bit(fewer: int) -> None:
    q, k, v, mask = texts(2, 60, 9, 3, 64, 64, 500)
    all_of_them = attention(q, k, v, mask, threads=2)
    last = attention(q[:, fewer:], k, v, mask[fewer:], threads=1)
    assert last.tobytes() == all_of_them[fewer:].tobytes()


@needs_avx512
@pytest.mark.parametrize("n", [1, 20])
def test_where_cells_lie_changes_no_bit_and_others_may_hold_anything(n: int) -> None:
    q, k, v, mask = texts(3, n, 6, 2, 64, 64, 400)
    wanted = attention(q, k, v, mask, threads=2)
    elsewhere = np.flatnonzero(np.random.default_rng(4).random(1500) < 0.5)[:400]
    far_k, far_v = (np.full((2, 1500, 64), np.nan, np.float16) for _ in "kv")
    far_mask = np.full((n, 1500), -np.inf, np.float16)
    far_k[:, elsewhere], far_v[:, elsewhere], far_mask[:, elsewhere] = k, v, mask
    assert attention(q, far_k, far_v, far_mask, threads=2).tobytes() == wanted.tobytes()


@needs_avx512
def test_a_token_that_sees_nothing_gets_zeros() -> None:
    q, k, v, mask = texts(4, 8, 2, 1, 64, 64, 100)
    mask[3] = -np.inf
    got = attention(q, k, v, mask, threads=1)
    assert (got[3] == 0).all() and np.isfinite(got).all()


@needs_avx512
def test_the_model_says_the_same_with_either_attention(gguf: Path) -> None:
    engine = LlamaEngine(gguf, n_cells=512, n_threads=2, n_seqs=2)
    feed(engine, 1, text_tokens(engine, 150, skip=150))
    here, other = logits_behind(engine, 0), probe(engine, 1)
    use(0)
    assert_close(engine, here, logits_behind(engine, 0), other)
    engine.close()


@needs_avx512
@pytest.mark.parametrize("steps", [(1, 2, 3, 60), tuple(range(20, 150)), (149,)])
def test_the_model_computes_the_same_bits_in_any_steps(gguf: Path, steps: tuple[int, ...]) -> None:
    engine = LlamaEngine(gguf, n_cells=512, n_threads=2, n_seqs=2)
    wanted = computed(engine, (75,))
    feed(engine, 1, text_tokens(engine, 90, skip=20))  # it will lie elsewhere
    engine.drop(0, 0)
    assert computed(engine, steps) == wanted
    engine.close()

"""Queries copied out of llama.cpp's graph, and how keys are rotated, on the packaged model."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Halt
from llmaas.engine.llama import query_probe, sampled_queries
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import C, ggml_function
from llmaas.engine.llama.query_probe import QueryProbe
from llmaas.engine.llama.sampled_queries import sampled
from llmaas.kv_arrays import F32, Queries
from tests.support.c_steps import C_STEPS

N = 330
"""Tokens of a context: three ubatches of one batch."""
ROOM = 10
"""Queries of one token, computed in different slices, must be so many times nearer to each other than two tokens' are.

Relative to the layer's largest, on one x86: up to 0.03 for one token, 1.1 for two.
"""


def make(path: Path) -> LlamaEngine:
    return LlamaEngine(path, n_cells=1536, n_seqs=3, n_threads=1)


@pytest.fixture(scope="module")
def shared(gguf: Path) -> Iterator[LlamaEngine]:
    engine = make(gguf)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: LlamaEngine) -> LlamaEngine:
    for seq in range(shared.n_seqs):
        shared.drop(seq, 0)
        shared.take_queries(seq)
    return shared


def words(engine: LlamaEngine, n: int = N) -> list[int]:
    text = " ".join(f"On day {day} the old captain walked {day * 7 % 31} miles to the sea." for day in range(99))
    return engine.tokenize(text, special=False, bos=False)[:n]


def feed(engine: LlamaEngine, seq: int, tokens: list[int], slice_: int) -> None:
    for at in range(0, len(tokens), slice_):
        engine.step([BatchItem(seq, engine.length(seq), tokens[at : at + slice_])])


def taken(engine: LlamaEngine, seq: int = 0) -> Queries:
    queries = engine.take_queries(seq)
    assert queries is not None
    return queries


def apart(a: Queries, b: Queries) -> float:
    """The largest difference, relative to the largest value of its layer."""
    x, y = a.values.astype(np.float64), b.values.astype(np.float64)
    over = (0, 2, 3)
    return float((np.abs(x - y).max(axis=over) / np.abs(x).max(axis=over)).max())


def assert_same(a: Queries, b: Queries) -> None:
    """The queries of the same tokens, but for rounding."""
    assert np.array_equal(a.positions, b.positions)
    neighbours = apart(Queries(a.positions[1:], a.values[:-1]), Queries(b.positions[1:], b.values[1:]))
    assert ROOM * apart(a, b) < neighbours


# -- which


def test_one_position_of_every_twelve_is_sampled_and_never_the_first() -> None:
    found = list(sampled(0, 12_000))
    assert [position // 12 for position in found] == list(range(1000))
    assert {position % 12 for position in found} == set(range(12))
    assert found[0] > 0
    assert [p for start in range(0, 12_000, 7) for p in sampled(start, min(start + 7, 12_000))] == found


# -- what


def test_queries_are_those_of_their_tokens_however_the_prefill_was_cut(engine: LlamaEngine) -> None:
    tokens = words(engine)
    feed(engine, 0, tokens, 512)
    whole = taken(engine)
    assert whole.positions.tolist() == list(sampled(0, N))
    assert whole.positions.dtype == np.int32 and whole.values.dtype == np.float16
    assert whole.values.shape == (len(whole.positions), 30, 9, 64)
    engine.drop(0, 0)
    feed(engine, 0, tokens, 50)
    cut = taken(engine)
    assert_same(whole, cut)


def test_decoded_tokens_are_sampled_like_prefilled_ones_and_sequences_are_kept_apart(engine: LlamaEngine) -> None:
    tokens = words(engine, 80)
    feed(engine, 2, tokens, 80)
    alone = taken(engine, 2)
    engine.set_sampler(0, Sampling())
    for position, token in enumerate(tokens):  # one decodes what the other is given five at a time
        items = [BatchItem(0, position, [token], sampler=0)]
        if position < 16:
            items.insert(0, BatchItem(1, 5 * position, tokens[5 * position : 5 * position + 5]))
        engine.step(items)
    for seq in (0, 1):
        assert_same(alone, taken(engine, seq))


def test_queries_and_exported_kv_make_the_attention_that_the_model_computes(
    engine: LlamaEngine, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, layers = words(engine), (0, 13, 29)
    outputs: dict[int, list[F32]] = {layer: [] for layer in layers}
    callback = _listener({f"kqv_out-{layer}".encode(): seen for layer, seen in outputs.items()})
    monkeypatch.setattr(QueryProbe, "install", lambda self, params: setattr(params, "cb_eval", callback))
    other = make(gguf)
    for seen in outputs.values():
        seen.clear()
    feed(other, 0, tokens, 512)
    other.close()

    feed(engine, 0, tokens, 512)
    queries, slab = taken(engine), engine.export(0, 0, N)
    for layer in layers:
        truth = np.concatenate(outputs[layer]).reshape(N, 9, 64)
        for position, query in zip(queries.positions.tolist(), queries.values[:, layer], strict=True):
            ours = _attend(query.astype(np.float64), slab.k[layer, : position + 1], slab.v[layer, : position + 1])
            # Rounding, against the output of the token before. The latter is 600 times as far away on one x86.
            off, wrong = np.linalg.norm(ours - truth[position]), np.linalg.norm(ours - truth[position - 1])
            assert 100 * off < wrong


def _attend(query: npt.NDArray[np.float64], k: Any, v: Any) -> npt.NDArray[np.float64]:
    """softmax(q K^T / sqrt(d)) V of one token's heads (9, 64) over keys and values (n, 3 x 64)."""
    keys, values = (rows.reshape(-1, 3, 64).astype(np.float64).repeat(3, axis=1) for rows in (k, v))
    scores = np.einsum("hd,nhd->hn", query, keys) / np.sqrt(64)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(np.einsum("hn,nhd->hd", scores / scores.sum(axis=1, keepdims=True), values))


def _listener(wanted: dict[bytes, list[F32]]) -> Any:
    """A callback for llama.cpp's graph, in Python, that appends what the wanted nodes hold to their lists."""
    pointer, count = ctypes.c_void_p, ctypes.c_size_t
    name = ctypes.CFUNCTYPE(ctypes.c_char_p, pointer)(ggml_function("ggml_get_name") or 0)
    size = ctypes.CFUNCTYPE(count, pointer)(ggml_function("ggml_nbytes") or 0)
    get = ctypes.CFUNCTYPE(None, pointer, pointer, count, count)(ggml_function("ggml_backend_tensor_get") or 0)

    def on_node(tensor: int, ask: bool, _: object) -> bool:
        seen = wanted.get(name(tensor) or b"")
        if seen is not None and not ask:
            values = np.empty(size(tensor) // 4, np.float32)
            get(tensor, values.ctypes.data, 0, values.nbytes)
            seen.append(values)
        return seen is not None or not ask

    return C.ggml_backend_sched_eval_callback(on_node)


# -- how long


def test_ggml_rounds_to_halves_as_numpy_does() -> None:
    halves = query_probe.ggml_halves()
    if halves is None:
        pytest.skip("this llama.cpp exports no such function")
    rng = np.random.default_rng(3)
    values = rng.standard_normal((4, 30, 65)).astype(np.float32) * np.float32(10.0) ** rng.integers(-9, 4, (4, 30, 65))
    values[0, 0, :6] = [0.0, -0.0, 65519.0, -65519.0, 2.0**-24, 2.0**-25]
    values[1, :, 0] = 2048 + np.arange(30) / 2  # halfway between two of them
    values = values.astype(np.float32).clip(-65519.0, 65519.0)
    found = halves(values)
    assert found.shape == values.shape and found.dtype == np.float16
    assert np.array_equal(found.view(np.uint16), values.astype(np.float16).view(np.uint16))
    assert np.array_equal(halves(values[:, ::2]), values[:, ::2].astype(np.float16))


def test_what_halves_cannot_hold_is_left_out() -> None:
    queries = sampled_queries.SampledQueries((2, 4, 8), 2)
    for i, bad in enumerate([np.nan, np.inf, -np.inf, 65520.0, -70000.0, 65519.0]):
        value = np.ones((1, 2, 4, 8), np.float32)
        value[0, 1, 2, 3] = bad
        queries.add([(0, i)], value)
    found = queries.take(0)
    assert found is not None and found.positions.tolist() == [5]
    assert found.values[0, 1, 2, 3] == 65504.0 and np.isfinite(found.values).all()


def test_queries_are_taken_once_and_dropped_positions_take_theirs_along(engine: LlamaEngine) -> None:
    tokens = words(engine, 120)
    feed(engine, 0, tokens, 120)
    engine.drop(0, 60)
    assert taken(engine).positions.tolist() == list(sampled(0, 60))
    assert engine.take_queries(0) is None
    feed(engine, 0, tokens[60:], 60)
    assert taken(engine).positions.tolist() == list(sampled(60, 120))
    feed(engine, 1, tokens, 120)
    engine.drop(1, 0)
    assert engine.take_queries(1) is None


def test_of_steps_in_a_row_those_that_were_done_are_sampled(engine: LlamaEngine) -> None:
    tokens = words(engine, 40)
    halt = Halt()
    for seq, n in ((0, 30), (1, 17), (2, 39)):
        feed(engine, seq, tokens[:n], 40)
        engine.take_queries(seq)
        engine.set_sampler(seq, Sampling())
    items = [BatchItem(seq, n, [tokens[n]], seq) for seq, n in ((0, 30), (1, 17), (2, 39))]
    n_done = 0
    while n_done < 50:
        halt.clear()
        timer = threading.Timer(0.03, halt.set)  # ends them anywhere
        timer.start()
        rows = engine.steps(items, 50 - n_done, 60.0, halt)
        timer.join()
        n_done += len(rows)
        items = [
            BatchItem(i.seq, i.pos + len(rows), [t], i.sampler)
            for i, t in zip(items, rows[-1], strict=True)
            if isinstance(t, int)
        ]
    for seq, n in ((0, 30), (1, 17), (2, 39)):
        assert taken(engine, seq).positions.tolist() == list(sampled(n, n + 50))


@pytest.mark.skipif(not C_STEPS, reason="the C part was not built: steps run one by one")
def test_steps_in_a_row_end_where_there_is_no_room_for_more_queries(gguf: Path) -> None:
    engine = LlamaEngine(gguf, n_cells=512, n_seqs=4, n_threads=1, n_batch=16, n_ubatch=16)
    engine.set_sampler(0, Sampling())
    items = []
    for seq in range(4):
        engine.set_sampler(seq, Sampling())
        engine.step([BatchItem(seq, 0, [5, 6])])
        items.append(BatchItem(seq, 2, [7], seq))
    rows = engine.steps(items, 60, 60.0, Halt())
    assert 12 < len(rows) < 60
    for seq in range(4):
        assert taken(engine, seq).positions.tolist() == list(sampled(0, 2 + len(rows)))
    engine.close()


def test_an_aborted_step_leaves_no_queries(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = words(engine, 200)
    feed(engine, 0, tokens[:100], 100)
    monkeypatch.setattr(engine.decoder.abort_flag, "clear", engine.abort)  # every step is aborted at its first node
    with pytest.raises(Exception, match="aborted"):
        feed(engine, 0, tokens[100:], 100)
    monkeypatch.undo()
    feed(engine, 0, tokens[100:150], 50)
    assert taken(engine).positions.tolist() == list(sampled(0, 150))


def test_of_a_long_context_the_older_queries_are_thinned_out(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled_queries, "MOST", 8)
    feed(engine, 0, words(engine), 512)
    found, every = taken(engine).positions.tolist(), list(sampled(0, N))
    assert 4 <= len(found) <= 8
    assert found == sorted(found) and set(found) <= set(every)
    assert found[-3:] == every[-3:] and found[0] < N / 2


def test_without_the_c_part_everything_works_and_nothing_is_sampled(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_probe, "load_callback", lambda: None)
    engine = make(gguf)
    feed(engine, 0, words(engine), 512)
    assert engine.take_queries(0) is None and engine.key_weights() is None
    assert engine.rope is not None
    engine.close()


# -- what it says about keys


def test_weights_are_the_root_mean_square_of_all_queries_over_shared_heads_and_pairs(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled_queries, "ENOUGH", 16)
    engine = make(gguf)
    tokens = words(engine, 144)
    feed(engine, 0, tokens, 512)
    assert engine.key_weights() is None, "12 queries are too few"
    feed(engine, 1, tokens[:64], 64)
    weights = engine.key_weights()
    assert weights is not None and weights.shape == (30, 3 * 64) and weights.dtype == np.float32
    values = np.concatenate([taken(engine, seq).values for seq in (0, 1)]).astype(np.float64)
    squares = (
        (values**2).reshape(-1, 30, 3, 3, 32, 2).mean(axis=(0, 3, 5))
    )  # query, layer, key head, sharing, pair, of it
    assert np.allclose(weights.reshape(30, 3, 32, 2), np.sqrt(squares)[..., None], rtol=1e-3)
    engine.close()


def test_the_model_rotates_its_keys_as_its_metadata_says(engine: LlamaEngine) -> None:
    rope = engine.rope
    assert rope is not None and not rope.halves
    assert np.array_equal(rope.angles, np.tile(100000.0 ** (-np.arange(32) / 32), (30, 1)).astype(np.float32))
    assert [engine.length(seq) for seq in range(engine.n_seqs)] == [0, 0, 0]


def test_looking_at_keys_leaves_every_cell_free(gguf: Path) -> None:
    engine = LlamaEngine(gguf, n_cells=256, n_seqs=1, n_threads=1)
    engine.step([BatchItem(0, 0, [1] * engine.n_cells)])
    engine.close()

"""Filling cells: several chunks by one call, and a report that is true to the chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.codec.header import HEADER_BYTES, read_header, stamped
from llmaas.kvchunks.tiering.filling import Filled, Filling
from llmaas.kvchunks.tiering.payload_reader import Arrived, Payload
from llmaas.planner.actions import ChunkSource
from llmaas.records import ChunkKey, Geometry, Precision, Tier
from tests.support.kv_slabs import SMALL, random_slab, same_bits

N = 12
KEYS = [ChunkKey(bytes([i]) * 16) for i in range(N)]
SOURCES = [ChunkSource(key, 64 * i, 64 * i + 64, Tier.POOL, False) for i, key in enumerate(KEYS)]
SOURCES[-1] = ChunkSource(KEYS[-1], 64 * (N - 1), 64 * (N - 1) + 37, Tier.POOL, False)
TOKENS = SOURCES[-1].stop


class CountingCodec(Codec):
    """Records how many chunks each call had, and fails in calls that ``refuses`` says."""

    def __init__(self, geometry: Geometry, refuses: Callable[[Sequence[Any]], bool] = lambda chunks: False) -> None:
        super().__init__(geometry)
        self.calls: list[int] = []
        self._refuses = refuses

    def decode_sound(self, chunks: Sequence[Any], slab: KvSlab) -> dict[int, ChunkDamaged]:
        self.calls.append(len(chunks))
        if self._refuses(chunks):
            raise MemoryError("as the test wants")
        return super().decode_sound(chunks, slab)


def coded(codec: Codec, sources: Sequence[ChunkSource] = SOURCES) -> list[bytearray]:
    chunks = []
    for i, source in enumerate(sources):
        slab = random_slab(codec.geometry, source.stop - source.start, i)
        chunks.append(codec.encode(slab, Precision(4, 4), source.key, sinks=int(i == 0)))
    return chunks


def with_wrong_bits(payload: bytearray, key: ChunkKey) -> bytearray:
    """A chunk whose checksum is right, but the bits of whose channels do not add up."""
    wrong = bytearray(payload)
    sinks = read_header(payload).sinks
    wrong[HEADER_BYTES + 2 * sinks * SMALL.n_layer * SMALL.k_dim] ^= 1
    return stamped(wrong, key)


def cells(runs: Sequence[int], g: Geometry = SMALL) -> list[KvSlab]:
    """Empty rows in some runs of cells."""
    return [
        KvSlab(np.zeros((g.n_layer, n, g.k_dim), np.float16), np.zeros((g.n_layer, n, g.v_dim), np.float16))
        for n in runs
    ]


def filled(
    codec: Codec,
    payloads: Sequence[bytearray | None],
    rows: Sequence[KvSlab],
    *,
    sources: Sequence[ChunkSource] = SOURCES,
    n_here: int = 1 << 10,
    per_read: int = N,
    helpers: int = 1,
) -> Filled:
    """``n_here`` of the payloads are there, and the others are read, ``per_read`` at a time."""
    everything = list(zip(sources, payloads, strict=True))

    def reads() -> Iterator[list[Arrived]]:
        for at in range(n_here, len(everything), per_read):
            yield list(everything[at : at + per_read])

    here = deque[Payload](everything[:n_here])
    with ThreadPoolExecutor(max(1, helpers)) as pool:
        return Filling(codec, sources, rows, here, reads(), Future()).run(pool, helpers)


def one_by_one(codec: Codec, payloads: Sequence[bytearray]) -> KvSlab:
    (whole,) = cells([TOKENS])
    for source, payload in zip(SOURCES, payloads, strict=True):
        rows = slice(source.start, source.stop)
        codec.decode(payload, source.key, KvSlab(whole.k[:, rows], whole.v[:, rows]))
    return whole


@pytest.mark.parametrize("runs", [(TOKENS,), (100, TOKENS - 100), (1, 63, 65, TOKENS - 129)])
@pytest.mark.parametrize("helpers", [0, 1, 3])
@pytest.mark.parametrize(("n_here", "per_read"), [(N, 1), (0, 1), (0, 5), (3, 4), (0, N)])
def test_chunks_in_any_runs_of_cells_are_what_they_are_one_by_one(
    runs: tuple[int, ...], helpers: int, n_here: int, per_read: int
) -> None:
    codec = Codec(SMALL)
    payloads, rows = coded(codec), cells(runs)
    found = filled(codec, payloads, rows, n_here=n_here, per_read=per_read, helpers=helpers)
    assert (found.n, found.error, found.copies) == (N, None, {})
    together = KvSlab(np.concatenate([r.k for r in rows], axis=1), np.concatenate([r.v for r in rows], axis=1))
    assert same_bits(together, one_by_one(codec, payloads))


def test_what_is_there_is_decoded_by_few_calls_and_the_last_ones_are_small() -> None:
    codec = CountingCodec(SMALL)
    many = [ChunkSource(ChunkKey(bytes([i]) * 16), 64 * i, 64 * i + 64, Tier.POOL, False) for i in range(64)]
    assert filled(codec, coded(codec, many), cells([64 * 64]), sources=many).n == 64
    assert sum(codec.calls) == 64 and len(codec.calls) <= 20 and codec.calls[-1] == 1


def test_what_is_read_together_is_decoded_by_one_call() -> None:
    codec = CountingCodec(SMALL)
    assert filled(codec, coded(codec), cells([TOKENS]), n_here=0, per_read=5).n == N
    assert sorted(codec.calls) == [2, 5, 5]


def test_no_call_decodes_more_than_a_stopped_load_may_wait_for() -> None:
    large = Geometry(n_layer=8, k_dim=1024, v_dim=1024, head_dim_k=128, head_dim_v=128)  # 2 MB of f16 a chunk
    codec, sources = CountingCodec(large), SOURCES[:-1]
    assert filled(codec, coded(codec, sources), cells([64 * (N - 1)], large), sources=sources).n == N - 1
    assert sum(codec.calls) == N - 1 and max(codec.calls) <= 3


@pytest.mark.parametrize("chunk", [0, 1, 5, N - 1])
@pytest.mark.parametrize("runs", [(TOKENS,), (32, TOKENS - 32)])
def test_a_damaged_chunk_among_others_ends_the_load_there(runs: tuple[int, ...], chunk: int) -> None:
    codec = Codec(SMALL)
    for damage in ("missing", "checksum", "bits"):
        payloads: list[bytearray | None] = list(coded(codec))
        whole = payloads[chunk]
        assert whole is not None
        if damage == "bits":
            payloads[chunk] = with_wrong_bits(whole, KEYS[chunk])
        else:
            payloads[chunk] = None if damage == "missing" else whole[:-1] + bytes([whole[-1] ^ 1])
        found = filled(codec, payloads, cells(runs))
        assert found.n == chunk and isinstance(found.error, ChunkDamaged)
        assert found.failed is not None and found.failed[0] == SOURCES[chunk]


@pytest.mark.parametrize("chunk", [0, 4, N - 1])
def test_a_call_that_fails_for_one_chunk_costs_none_before_it(chunk: int) -> None:
    tokens = SOURCES[chunk].start
    codec = CountingCodec(SMALL, lambda chunks: any(first == tokens for _, first in chunks))
    found = filled(codec, coded(codec), cells([TOKENS]))
    assert found.n == chunk and isinstance(found.error, MemoryError)


def test_what_is_to_be_kept_is_kept_and_nothing_that_is_damaged() -> None:
    codec = Codec(SMALL)
    payloads = coded(codec)
    payloads[7] = with_wrong_bits(payloads[7], KEYS[7])
    sources = [ChunkSource(s.key, s.start, s.stop, Tier.DISK, i % 2 == 1) for i, s in enumerate(SOURCES)]
    found = filled(codec, payloads, cells([TOKENS]), sources=sources, helpers=0)
    assert found.n == 7 and {number: found.copies[number] for number in range(7) if number in found.copies} == {
        number: payloads[number] for number in (1, 3, 5)
    }
    assert 7 not in found.copies


def test_a_stopped_load_begins_nothing_more() -> None:
    codec, stop = CountingCodec(SMALL), Future[None]()
    stop.set_result(None)
    here = deque[Payload](zip(SOURCES, coded(codec), strict=True))
    filling = Filling(codec, SOURCES, cells([TOKENS]), here, iter([]), stop)
    with ThreadPoolExecutor(1) as pool:
        assert filling.run(pool, 1).n == 0
    assert codec.calls == []

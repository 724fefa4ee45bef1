"""The disk writer keeps to its rate, ends at once when it must, and tells the truth about what it wrote."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.disk_writer import DiskWriter
from llmaas.planner.actions import StopWrite, WriteChunks
from llmaas.planner.events import FAILED, Stored, Written
from llmaas.records import ChunkKey, ContextId, Geometry, Precision

KEYS = tuple(ChunkKey(bytes([i]) * 16) for i in range(8))


@pytest.fixture(scope="module")
def payloads() -> list[bytes]:
    """Eight chunks of 2 MiB each."""
    geometry = Geometry(n_layer=16, k_dim=512, v_dim=512, head_dim_k=64, head_dim_v=64)
    rng = np.random.default_rng(1)
    codec = Codec(geometry)
    values = rng.standard_normal((2, 16, 64, 512)).astype(np.float16)
    slab = KvSlab(values[0], values[1])
    return [bytes(codec.encode(slab, Precision(16, 16), key)) for key in KEYS]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        yield store


def begin(writer: DiskWriter, payloads: list[bytes], write: int = 1) -> queue.SimpleQueue[Written]:
    answers: queue.SimpleQueue[Written] = queue.SimpleQueue()
    writer.write(WriteChunks(write, ContextId("c"), KEYS, (None,) * len(KEYS)), payloads, answers.put)
    return answers


def test_a_paced_write_takes_its_time_and_a_stopped_one_ends_soon_and_says_what_it_wrote(
    store: Store, payloads: list[bytes]
) -> None:
    rate = 4 * len(payloads[0])  # four chunks a second
    writer = DiskWriter(store, rate)
    answers = begin(writer, payloads)
    time.sleep(0.3)
    assert answers.empty(), "all of it takes two seconds"
    writer.stop(StopWrite(1).write)
    outcomes = answers.get(timeout=1.0).outcomes
    n = len(KEYS) - outcomes.count(FAILED)
    assert 0 < n < len(KEYS) and list(outcomes) == [Stored(len(payloads[0]))] * n + [FAILED] * (len(KEYS) - n)
    assert {chunk.key for chunk in store.chunks()} == set(KEYS[:n])
    writer.close()


def test_after_a_stop_the_next_write_is_whole_and_paced_again(store: Store, payloads: list[bytes]) -> None:
    writer = DiskWriter(store, 16 * len(payloads[0]))
    answers = begin(writer, payloads)
    writer.stop(1)
    answers.get(timeout=2.0)
    began = time.monotonic()
    assert FAILED not in begin(writer, payloads, 2).get(timeout=5.0).outcomes
    assert time.monotonic() - began > 0.2
    writer.close()


def test_closing_waits_for_no_pace_and_loses_nothing(store: Store, payloads: list[bytes]) -> None:
    writer = DiskWriter(store, len(payloads[0]) / 100)
    answers = begin(writer, payloads)
    writer.close()
    assert FAILED not in answers.get_nowait().outcomes

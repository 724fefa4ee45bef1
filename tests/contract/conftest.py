"""The engines that must keep the contract: the fake one, and llama.cpp with the packaged model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmaas.engine.base import Engine
from llmaas.engine.fake import FakeEngine
from llmaas.kv_arrays import KvSlab
from llmaas.records import Geometry
from tests.contract.support import Logits, N, bounds, feed, probe, text_tokens
from tests.support.fewer_layers import first_layers

N_CELLS, N_SEQS = 1024, 4
SLOW_FROM = 400
"""A step of more tokens takes the fake engine long enough to be aborted, as it takes the real one."""


@pytest.fixture(scope="session")
def gguf(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model; of it only the first LLMAAS_TEST_LAYERS layers, if that is set: for a device that computes slowly."""
    layers = os.environ.get("LLMAAS_TEST_LAYERS")
    if layers is None:
        return gguf
    return first_layers(gguf, tmp_path_factory.mktemp("model") / gguf.name, int(layers))


def _fake() -> Engine:
    shape = Geometry(n_layer=3, k_dim=64, v_dim=32, head_dim_k=32, head_dim_v=32)

    def step_time(tokens: int) -> float:
        return 0.2 if tokens > SLOW_FROM else 0.0

    return FakeEngine(N_CELLS, N_SEQS, geometry=shape, in_place=True, step_time=step_time)


@pytest.fixture(scope="session", params=["fake", "llama"])
def make_engine(request: pytest.FixtureRequest) -> Callable[[], Engine]:
    """Builds a new engine of the kind under test."""
    if request.param == "fake":
        return _fake
    path = request.getfixturevalue("gguf")
    from llmaas.engine.llama.engine import LlamaEngine

    return lambda: LlamaEngine(path, n_cells=N_CELLS, n_seqs=N_SEQS, n_threads=2)


@pytest.fixture(scope="session")
def shared_engine(make_engine: Callable[[], Engine]) -> Iterator[Engine]:
    engine = make_engine()
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine: Engine) -> Engine:
    """The engine that all tests share, with nothing in its cells and no samplers."""
    for seq in range(shared_engine.n_seqs):
        shared_engine.drop(seq, 0)
        shared_engine.set_sampler(seq, None)
    return shared_engine


# -- a context to compare with


@dataclass(frozen=True)
class Reference:
    """A context's chunks, the logits that it gives undisturbed and alone, and those of another context."""

    slabs: list[KvSlab]
    truth: Logits
    other: Logits


@pytest.fixture(scope="session")
def reference(shared_engine: Engine) -> Reference:
    for seq in range(shared_engine.n_seqs):
        shared_engine.drop(seq, 0)
    feed(shared_engine, 0, text_tokens(shared_engine, skip=200))
    other = probe(shared_engine)
    shared_engine.drop(0, 0)
    feed(shared_engine, 0, text_tokens(shared_engine))
    slabs = [shared_engine.export(0, start, stop) for start, stop in bounds(N)]
    truth = probe(shared_engine)
    shared_engine.drop(0, 0)
    return Reference(slabs, truth, other)


@pytest.fixture
def slabs(reference: Reference) -> list[KvSlab]:
    return reference.slabs


@pytest.fixture
def truth(reference: Reference) -> Logits:
    return reference.truth


@pytest.fixture
def other(reference: Reference) -> Logits:
    return reference.other

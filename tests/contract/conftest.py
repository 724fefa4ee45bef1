"""The engines that must keep the contract: the fake one, and llama.cpp with the packaged model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from llmaas.engine.base import Engine
from llmaas.engine.fake import FakeEngine
from llmaas.records import Geometry

N_CELLS, N_SEQS = 1024, 4
SLOW_FROM = 400
"""A step of more tokens takes the fake engine long enough to be aborted, as it takes the real one."""


def _fake() -> Engine:
    shape = Geometry(n_layer=3, k_dim=64, v_dim=32, head_dim_k=32, head_dim_v=32)
    return FakeEngine(N_CELLS, N_SEQS, geometry=shape, step_time=lambda tokens: 0.2 if tokens > SLOW_FROM else 0.0)


@pytest.fixture(scope="module", params=["fake", "llama"])
def make_engine(request: pytest.FixtureRequest) -> Callable[[], Engine]:
    """Builds a new engine of the kind under test."""
    if request.param == "fake":
        return _fake
    path = request.getfixturevalue("gguf")
    from llmaas.engine.llama.engine import LlamaEngine

    return lambda: LlamaEngine(path, n_cells=N_CELLS, n_seqs=N_SEQS, n_threads=2)


@pytest.fixture(scope="module")
def shared_engine(make_engine: Callable[[], Engine]) -> Iterator[Engine]:
    engine = make_engine()
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine: Engine) -> Engine:
    """The module's engine with nothing in its cells and no samplers."""
    for seq in range(shared_engine.n_seqs):
        shared_engine.drop(seq, 0)
        shared_engine.set_sampler(seq, None)
    return shared_engine

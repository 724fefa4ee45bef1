"""An engine with layers on a device, and a daemon that serves so: scripts/test-gpu builds one and runs this file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmaas.api.client import Client
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.context import ContextSettings, working_memory
from llmaas.engine.llama.devices import Placement, compute_devices
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.model import LlamaModel
from llmaas.errors import ConfigError
from tests.cli.conftest import Daemon

DEVICES = compute_devices()
TOKENS = [(i * 37) % 1000 + 300 for i in range(96)]
pytestmark = [
    pytest.mark.skipif(not DEVICES, reason="no device computes here: scripts/test-gpu"),
    pytest.mark.timeout(900),  # a device of software computes five tokens a second
]


def made(path: Path, placement: Placement) -> LlamaEngine:
    return LlamaEngine(
        path, n_cells=1024, n_seqs=4, n_threads=2, open_model=lambda path: LlamaModel(path, placement=placement)
    )


@pytest.fixture(scope="module", params=[None, 12], ids=["all layers", "12 layers"])
def engine(request: pytest.FixtureRequest, gguf: Path) -> Iterator[LlamaEngine]:
    engine = made(gguf, Placement(layers=request.param))
    yield engine
    engine.close()


def test_weights_are_on_the_device(engine: LlamaEngine, gguf: Path, request: pytest.FixtureRequest) -> None:
    apart = [device.name for device in DEVICES if not device.integrated]
    layers = request.node.callspec.params["engine"]
    assert bool(engine.device_bytes) == (bool(apart) and layers != 0)
    need = working_memory(gguf, ContextSettings(1024, 4, 1, 512, 128, "f16"), Placement(layers=layers))
    cells = 1024 * engine.info.geometry.token_bytes
    if apart:
        share = 1 if layers is None else layers / engine.info.geometry.n_layer
        assert need.cells_apart == pytest.approx(cells * share, rel=0.1)


def test_what_was_computed_there_comes_back(engine: LlamaEngine) -> None:
    """Also beside another sequence, and in pieces."""
    engine.step([BatchItem(0, 0, TOKENS)])
    engine.step([BatchItem(1, 0, TOKENS[::-1])])
    slabs = [engine.export(0, start, start + 48) for start in range(0, 96, 48)]
    kept = [(slab.k.copy(), slab.v.copy()) for slab in slabs]
    engine.drop(0, 0)
    for i, slab in enumerate(slabs):
        engine.load(0, 48 * i, slab)
    for i, (k, v) in enumerate(kept):
        again = engine.export(0, 48 * i, 48 * i + 48)
        assert np.array_equal(again.k, k) and np.array_equal(again.v, v)
    for seq in (0, 1):
        engine.drop(seq, 0)


def test_keys_are_nearly_those_of_the_cpu(engine: LlamaEngine, gguf: Path) -> None:
    engine.step([BatchItem(0, 0, TOKENS)])
    slab = engine.export(0, 0, 96)
    alone = made(gguf, Placement(devices=()))
    try:
        assert not alone.device_bytes
        alone.step([BatchItem(0, 0, TOKENS)])
        truth = alone.export(0, 0, 96)
    finally:
        alone.close()
    for found, right in ((slab.k, truth.k), (slab.v, truth.v)):
        error = np.abs(found.astype(np.float32) - right.astype(np.float32)).mean()
        assert error < 0.05 * np.abs(right.astype(np.float32)).mean()
    engine.drop(0, 0)


def test_queries_are_sampled_there(engine: LlamaEngine) -> None:
    engine.step([BatchItem(0, 0, TOKENS)])
    queries = engine.take_queries(0)
    assert queries is not None and len(queries.positions) == pytest.approx(96 / 12, abs=2)
    assert np.isfinite(queries.values).all() and np.abs(queries.values).max() > 0
    engine.drop(0, 0)


def test_a_device_that_is_not_there_is_named_with_those_that_are(gguf: Path) -> None:
    with pytest.raises(ConfigError) as error:
        made(gguf, Placement(devices=("Voodoo0",)))
    assert "Voodoo0" in error.value.message and DEVICES[0].name in (error.value.hint or "")


def test_a_daemon_serves_from_there_and_its_contexts_come_back(gguf: Path, tmp_path: Path) -> None:
    """Two contexts take turns in cells for one."""
    (tmp_path / "run").mkdir()
    daemon = Daemon(tmp_path, more=("--cells", "256", "--bits", "16/16", "--devices", DEVICES[0].name))
    text = "The harbour master wrote down each ship that came in. " * 7
    daemon.start()
    try:
        with Client(daemon.socket, app="notes") as client:
            ids = [client.create(name=name).id for name in ("first", "second", "third")]
            for context in ids:
                client.append(context, prompt=f"{text}{context}")
            done = [client.generate(context, prompt="\n\nIn short:", max_tokens=8).done for context in [*ids, *ids]]
        assert [each.n_generated for each in done] == [8] * 6
        for each in done:
            assert each.switch.pool + each.switch.disk > 60 > each.switch.recomputed, (
                "it came back, and was not computed"
            )
    finally:
        assert daemon.stop() == 0

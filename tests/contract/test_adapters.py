"""What every engine promises of LoRA adapters (llmaas/engine/base.py), tried on the fake and on the real one alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bench.lib.adapter_files import SMOLLM2, write_gguf
from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Engine
from llmaas.engine.fake import FakeEngine, fake_adapter
from llmaas.errors import AdapterMismatch, AdapterUnreadable
from llmaas.kv_arrays import KvSlab

TEXT = "The old captain walked seven miles and saw the sea, the lighthouse and the storm."


@dataclass(frozen=True)
class Files:
    one: Path
    two: Path
    others: Path
    """Made for another model."""
    torn: Path
    text: Path


@pytest.fixture(scope="module")
def files(shared_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("adapters")
    made = Files(*(root / name for name in ("one", "two", "others", "torn", "text")))
    if isinstance(shared_engine, FakeEngine):
        made.one.write_bytes(fake_adapter(b"one"))
        made.two.write_bytes(fake_adapter(b"two"))
        made.others.write_bytes(fake_adapter(b"one", model="other-weights"))
    else:
        layers = shared_engine.info.geometry.n_layer
        weights = {name: shape for name, shape in SMOLLM2.items() if int(name.split(".")[1]) < layers}
        write_gguf(made.one, 1, weights=weights)
        write_gguf(made.two, 2, weights=weights)
        write_gguf(made.others, 3, weights=weights, meta={"general.architecture": "gemma3"})
    whole = made.one.read_bytes()
    made.torn.write_bytes(whole[: len(whole) - 2])
    made.text.write_text("no adapter at all")
    return made


@pytest.fixture
def fitted(engine: Engine, files: Files) -> Iterator[Engine]:
    """With the adapters "one" and "two" loaded."""
    engine.load_adapter("one", files.one)
    engine.load_adapter("two", files.two)
    yield engine
    engine.unload_adapter("one")
    engine.unload_adapter("two")


def tokens_of(engine: Engine) -> list[int]:
    return engine.tokenize(TEXT, special=False, bos=False)


def run(engine: Engine, adapter: str, seq: int = 0) -> tuple[list[float], KvSlab]:
    """Logits behind the text, and its KV, computed from nothing."""
    engine.drop(seq, 0)
    engine.set_sampler(seq, Sampling())
    engine.step([BatchItem(seq, 0, tokens_of(engine), seq)], adapter)
    return list(np.asarray(engine.logits())), engine.export(seq, 0, engine.length(seq))


def test_each_adapter_changes_logits_and_kv_and_the_bare_model_comes_back_bit_identical(fitted: Engine) -> None:
    bare, kv = run(fitted, "")
    one, kv_one = run(fitted, "one")
    two, kv_two = run(fitted, "two")
    assert bare != one != two != bare
    assert not np.array_equal(kv_one.k, kv_two.k) and not np.array_equal(kv_one.v, kv.v)
    for adapter, logits, rows in (("one", one, kv_one), ("", bare, kv), ("two", two, kv_two)):
        again, kv_again = run(fitted, adapter)
        assert again == logits
        assert np.array_equal(kv_again.k, rows.k) and np.array_equal(kv_again.v, rows.v)


def test_kv_goes_out_and_in_whatever_adapter_is_in_use(fitted: Engine) -> None:
    def go_on(adapter: str) -> list[float]:
        n = fitted.length(0)
        fitted.step([BatchItem(0, n, tokens_of(fitted)[:1], 0)], adapter)
        fitted.drop(0, n)
        return list(np.asarray(fitted.logits()))

    _, kv = run(fitted, "one")
    undisturbed = go_on("one")
    fitted.drop(0, 0)
    run(fitted, "two", seq=1)
    fitted.drop(1, 0)
    fitted.load(0, 0, kv)
    assert go_on("one") == undisturbed
    assert go_on("two") != undisturbed


def test_an_adapter_can_be_taken_out_while_it_is_in_use_and_loaded_again(engine: Engine, files: Files) -> None:
    bare, _ = run(engine, "")
    engine.load_adapter("one", files.one)
    one, _ = run(engine, "one")
    engine.unload_adapter("one")
    assert run(engine, "")[0] == bare
    with pytest.raises(ValueError, match="no adapter 'one'"):
        run(engine, "one")
    assert engine.length(0) == 0, "nothing was computed"
    engine.load_adapter("one", files.one)
    with pytest.raises(ValueError, match="already"):
        engine.load_adapter("one", files.two)
    assert run(engine, "one")[0] == one
    engine.unload_adapter("one")
    with pytest.raises(ValueError, match="no adapter 'one'"):
        engine.unload_adapter("one")


def test_what_is_no_adapter_or_made_for_another_model_is_refused(engine: Engine, files: Files) -> None:
    bare, _ = run(engine, "")
    for path in (files.torn, files.text, files.one.with_name("gone"), files.one.parent):
        with pytest.raises(AdapterUnreadable) as refused:
            engine.load_adapter("bad", path)
        assert str(path) in refused.value.message
    with pytest.raises(AdapterMismatch, match=str(files.others)):
        engine.load_adapter("bad", files.others)
    assert run(engine, "")[0] == bare
    engine.load_adapter("bad", files.one)  # the name is still free
    engine.unload_adapter("bad")

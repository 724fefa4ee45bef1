"""Steps that fail, of a model whose state can be cut and of one whose state cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem
from llmaas.engine.llama import decoder
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.errors import EngineFailed
from tests.support.random_models import write_hybrid, write_llama

PROMPT = list(range(3, 83))


@pytest.fixture(params=[write_llama, write_hybrid])
def write(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    found: Callable[[Path], Path] = request.param
    return found


@pytest.fixture
def engine(tmp_path: Path, write: Callable[[Path], Path]) -> Iterator[LlamaEngine]:
    made = LlamaEngine(write(tmp_path / "m.gguf"), n_cells=512, n_seqs=3, n_threads=1)
    made.set_sampler(0, Sampling(temperature=0.0))
    yield made
    made.close()


def answer(engine: LlamaEngine, seq: int, n: int = 8) -> list[int]:
    """Compute what the sequence lacks of PROMPT, and answer it."""
    begin, found = engine.length(seq), list[int]()
    tokens = PROMPT[begin:]
    for _ in range(n):
        (token,) = engine.step([BatchItem(seq, begin, tokens, 0)])
        assert token is not None
        begin, tokens = begin + len(tokens), [token]
        found.append(token)
    return found


def test_a_failed_step_leaves_nothing_of_itself(
    engine: LlamaEngine, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = answer(engine, 0)
    engine.step([BatchItem(1, 0, PROMPT[:40])])
    engine.step([BatchItem(2, 0, PROMPT[:20])])
    real: Callable[..., int] = decoder.C.llama_decode

    def fail(*args: Any) -> int:
        real(*args)  # it has changed the state
        return -3

    with monkeypatch.context() as patch:
        patch.setattr(decoder.C, "llama_decode", fail)
        with pytest.raises(EngineFailed, match="code -3"):
            engine.step([BatchItem(1, 40, PROMPT[40:60]), BatchItem(2, 20, PROMPT[20:21], 0)])
    cuttable = write is write_llama
    assert engine.info.chunkable is cuttable
    assert (engine.length(1), engine.length(2)) == ((40, 20) if cuttable else (0, 0))
    assert engine.length(0) == len(PROMPT) + 7, "it was not in the step"
    assert answer(engine, 1) == answer(engine, 2) == right


def test_a_step_that_did_not_begin_leaves_every_state(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    right = answer(engine, 0)
    engine.step([BatchItem(1, 0, PROMPT[:40])])
    with monkeypatch.context() as patch:
        patch.setattr(decoder.C, "llama_decode", lambda *_: -1)
        with pytest.raises(EngineFailed, match="code -1"):
            engine.step([BatchItem(1, 40, PROMPT[40:60])])
    assert engine.length(1) == 40
    assert answer(engine, 1) == right

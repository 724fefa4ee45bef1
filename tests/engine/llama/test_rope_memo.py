"""Tables of angles that are kept: used if they explain the keys, and measured anew if not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmaas.engine.llama import rope
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.rope import RopeHints, find_rope
from llmaas.engine.llama.rope_memo import RopeMemo
from llmaas.kv_arrays import F32
from tests.engine.llama.test_rope import HEAD_DIM, N_LAYER, Angles, formula, model

HINTS = RopeHints(True, HEAD_DIM, bases=(1e4,))


class Keys:
    """Counts how often keys are asked for."""

    def __init__(self, layers: list[Angles]) -> None:
        self._keys_of, self.asked = model(layers, halves=True), 0

    def __call__(self, token: int, position: int) -> F32:
        self.asked += 1
        return self._keys_of(token, position)


@pytest.fixture(autouse=True)
def hints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope, "read_hints", lambda model, head_dim: HINTS)


@pytest.fixture
def memo(tmp_path: Path) -> RopeMemo:
    return RopeMemo(tmp_path / "rope.json")


def test_what_was_found_is_checked_and_not_measured_again(memo: RopeMemo) -> None:
    stretched = formula(1e5)
    stretched[4:] /= 8
    keys = Keys([formula(1e4), stretched, formula(1e4), stretched])
    first = find_rope(None, HEAD_DIM, keys, memo, "m")
    measured, keys.asked = keys.asked, 0
    again = find_rope(None, HEAD_DIM, keys, memo, "m")
    assert first is not None and again is not None and again.halves == first.halves
    assert again.angles.dtype == np.float32 and np.array_equal(again.angles, first.angles)
    assert (measured, keys.asked) == (12, 2)


def test_a_table_that_does_not_fit_is_measured_anew(memo: RopeMemo) -> None:
    right = formula(1e4).astype(np.float32)
    keys = Keys([formula(1e4)] * N_LAYER)
    wrong = np.tile(right, (N_LAYER, 1))
    wrong[2, 1] += 1e-3
    for angles in (wrong, wrong[:, :3], wrong[:2], np.zeros((N_LAYER, 0), np.float32)):
        memo.keep("m", angles)
        found = find_rope(None, HEAD_DIM, keys, memo, "m")
        assert found is not None and np.array_equal(found.angles, np.tile(right, (N_LAYER, 1)))
        kept = memo.find("m")
        assert kept is not None and np.array_equal(kept, found.angles)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"m": 3}',
        '{"m": {"tables": [[1]], "layers": []}}',
        '{"m": {"tables": [[1]], "layers": [1]}}',
        '{"m": {"tables": [[1]], "layers": [-1]}}',
        '{"m": {"tables": [["x"]], "layers": [0]}}',
        '{"m": {"tables": [[1], [1, 2]], "layers": [0]}}',
        '{"m": {"tables": [[NaN]], "layers": [0]}}',
        '{"m": {"tables": [[1e999]], "layers": [0]}}',
        '{"m": {"tables": [1], "layers": [0]}}',
    ],
)
def test_a_file_without_sense_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "rope.json").write_text(text)
    assert RopeMemo(tmp_path / "rope.json").find("m") is None


def test_a_file_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    memo = RopeMemo(tmp_path / "absent" / "rope.json")
    found = find_rope(None, HEAD_DIM, Keys([formula(1e4)] * N_LAYER), memo, "m")
    assert found is not None and memo.find("m") is None


def test_an_engine_finds_the_same_table_with_it(
    model_path: Path, memo: RopeMemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    tables = []
    for memos in (None, memo, memo):
        engine = LlamaEngine(model_path, n_cells=256, n_seqs=2, n_threads=1, rope_memo=memos)
        assert engine.rope is not None
        tables.append(engine.rope.angles)
        engine.close()
    assert np.array_equal(tables[0], tables[1]) and np.array_equal(tables[0], tables[2])

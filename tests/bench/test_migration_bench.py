"""What ``bench.migration`` measures, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.lib.cli import Options
from bench.lib.hit_moves import hit_moves
from bench.lib.node import two_nodes
from bench.migration import gaps_at
from tests.support.random_models import write_llama


def test_the_pause_of_a_move_is_looked_for_from_its_request_to_a_few_tokens_behind_it() -> None:
    before = [(0.0, 1), (5.0, 1), (6.0, 1), (9.0, 1)]
    behind = [(10.0 + i, 7) for i in range(3)]
    late = [(100.0, 1), (200.0, 1)]
    assert gaps_at([*before, *behind, *late], start=5.5, moved_at=9.5) == [1.0, 3.0, 1.0, 1.0, 1.0]


def test_moves_are_hit_and_nothing_is_lost(tmp_path: Path) -> None:
    found = hit_moves(Options(True, 3, write_llama(tmp_path / "m.gguf"), 1, tmp_path), 8)
    assert found["moves"] >= 8 and found["moved"] > 0
    assert found["no fault"] < found["moves"], "some are hit"
    assert (found["lost"], found["unsound_stores"]) == (0, 0)


def test_a_node_that_ends_by_itself_is_told_with_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(True, 1, write_llama(tmp_path / "m.gguf"), 1, tmp_path)
    with (
        pytest.raises(RuntimeError, match="ended by itself: node a: exit code 0"),
        two_nodes(options, fake=True) as nodes,
    ):
        nodes[0].stop()
        nodes[1].start_if_killed()
        nodes[0].start_if_killed()
    told = capsys.readouterr().err
    assert "node a: exit code 0" in told and "node b: running" in told

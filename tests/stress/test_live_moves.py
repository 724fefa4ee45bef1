"""Some moves of ``live_moves.py``; CONTRIBUTING.md has the command for five hundred."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.stress.live_moves import live_moves


def test_answers_that_move_under_load_and_faults_are_told_once_and_have_one_owner(tmp_path: Path) -> None:
    moves = live_moves(tmp_path, int(os.environ.get("LLMAAS_MOVES", "8")), seed=3)
    print(json.dumps(moves.tally, indent=2))
    assert moves.verdict == []
    assert moves.tally["moved in the middle"] > 0 and moves.tally["answers to others"] > 0

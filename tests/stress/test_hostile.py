"""Each attack of ``hostile.py`` for a moment: nobody else notices much of it, and the daemon can be stopped meanwhile.

The bounds are wide, since a busy machine alone makes everything slower; what they find is work that takes seconds on
the event loop, memory that is not counted, and waits without end. docs/security.md has the command for the real bars.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress.attacks.table import ATTACKS
from tests.stress.hostile import Bars, measure

BARS = Bars(frozen_s=0.5, grown=96 << 20, ratio=None, first_token_s=8.0, end_s=5.0, connect_s=4.0)
SECONDS = 0.6


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_harms_nobody_else(name: str, tmp_path: Path) -> None:
    outcome = measure(tmp_path, ATTACKS[name], SECONDS, quiet_seconds=0.0)
    assert outcome.missed(BARS) == []

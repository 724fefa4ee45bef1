"""A minute of the soak (``soak.py``) on the fake engine; CONTRIBUTING.md has the command for longer ones."""

from __future__ import annotations

import json
from pathlib import Path

from tests.stress.soak import soak

KINDS = {"generate", "append", "create", "fork", "truncate", "delete", "hint", "vanish", "killed client"}
KINDS |= {"overflow", "overflow: shifted"}


def test_a_minute_of_clients_of_every_kind_leaves_nothing_behind_and_every_answer_is_right(tmp_path: Path) -> None:
    whole = soak(tmp_path, seconds=40.0, rounds=4)
    print(json.dumps(whole.summary(), indent=2))
    assert whole.verdict() == []
    seen = whole.tally.operations
    assert not [kind for kind in KINDS if not seen[kind]], seen
    assert sum(kind.startswith("nonsense") for kind in seen) == 7
    assert not {"done", "cancelled", "expired", "context_too_long"} - set(whole.tally.outcomes)

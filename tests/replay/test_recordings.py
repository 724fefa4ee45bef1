"""Recordings that an earlier version made: the planner decides today, event by event, what it decided then."""

from __future__ import annotations

import dataclasses
import enum
import gzip
from pathlib import Path
from typing import Any

import msgpack
import pytest

from llmaas.planner.planner import Planner
from llmaas.service.recorder import read

RECORDED = Path(__file__).parents[1] / "data" / "version-0.1.0"
RENAMED = {"PersistSensitivity": "NoteTolerances"}
"""Actions that were called otherwise then."""
ADDED = {"draw_s"}
"""Fields of actions that there were not then."""


def plain(value: Any) -> Any:
    """The value as the earlier version's actions were written down: fields by position, enums by value."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return [plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.name not in ADDED]
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


@pytest.mark.parametrize("name", ["faults-0", "faults-1", "faults-2", "scheduling"])
def test_a_recording_of_an_earlier_version_gives_the_actions_that_it_gave_then(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(gzip.decompress((RECORDED / f"{name}.recording.gz").read_bytes()))
    then = msgpack.unpackb(gzip.decompress((RECORDED / f"{name}.actions.gz").read_bytes()))
    settings, events = read(log)
    planner = Planner(settings)
    for expected, (event, now) in zip(then, events, strict=True):
        actions = planner.handle(event, now)
        found = [[RENAMED.get(type(a).__name__, type(a).__name__), plain(a)] for a in actions]
        assert found == expected, event
    assert planner.tally.switches > 5

"""What is recorded is read as it was, and as earlier versions wrote it."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest

from llmaas.planner import events as ev
from llmaas.records import AppId, ChunkKey, ChunkMeta, ChunkSensitivity, ContextId, Precision, RequestId
from llmaas.service.recorder import Recorder, read
from tests.support.planner_world import settings

KEY = ChunkKey(b"k" * 16)
SENSITIVITY = ChunkSensitivity(0.1, 0.2, 0.5, 10.0, 640)
OUTCOMES = (ev.Stored(100), ev.FAILED, ev.Stored(7))
EVENTS: list[ev.Event] = [
    ev.ContextOpened(ContextId("c"), AppId("0/app"), (KEY,), 64, 3.5),
    ev.ContextOpened(ContextId("d"), AppId("0/app"), (KEY,), 64, 3.5, ((KEY, 9, None),), coldest=True),
    ev.ContextChanged(ContextId("d"), 0, (KEY,), 64, ((KEY, 9, ChunkMeta(Precision(4, 3), SENSITIVITY)),)),
    ev.ChunksFound(((KEY, 100, ChunkMeta(Precision(4, 3), SENSITIVITY)), (KEY, 100, None))),
    ev.ChunksCame(ContextId("c"), ((KEY, 100, None),)),
    ev.ContextsExpected((ContextId("c"), ContextId("d"))),
    ev.Submitted(RequestId(1), ContextId("c"), 100, 5, rate=2.0),
    ev.StepDone(1, (ev.Drawn.TOKEN, ev.Drawn.END), 3),
    ev.Measured(2, ((KEY, SENSITIVITY),)),
    ev.Saved(3, OUTCOMES),
    ev.Fetched(4, OUTCOMES),
    ev.Lowered(5, OUTCOMES),
    ev.Written(6, OUTCOMES, full=True),
    ev.Flush(),
]


def test_events_and_settings_are_read_as_they_were(tmp_path: Path) -> None:
    made_with = settings(eviction="lru")
    recorder = Recorder(tmp_path / "log", made_with)
    for i, event in enumerate(EVENTS):
        recorder.write(event, float(i))
    recorder.close()
    read_settings, events = read(tmp_path / "log")
    assert read_settings == made_with
    assert list(events) == [(event, float(i)) for i, event in enumerate(EVENTS)]


def test_contexts_that_earlier_versions_recorded_bring_no_chunks(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "log", settings())
    recorder.close()
    with (tmp_path / "log").open("ab") as file:
        file.write(msgpack.packb(["ContextOpened", 1.0, ["c", "0/app", [KEY], 64, 3.5]]))
        file.write(msgpack.packb(["ContextChanged", 2.0, ["c", 0, [KEY], 64]]))
    assert [event for event, _ in read(tmp_path / "log")[1]] == [
        ev.ContextOpened(ContextId("c"), AppId("0/app"), (KEY,), 64, 3.5),
        ev.ContextChanged(ContextId("c"), 0, (KEY,), 64),
    ]


@pytest.mark.parametrize("event", [e for e in EVENTS if isinstance(e, ev.Saved | ev.Fetched | ev.Lowered | ev.Written)])
def test_a_chunk_that_failed_is_recorded_as_one_of_no_bytes_as_ever(event: ev.Saved, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "log", settings())
    recorder.write(event, 1.0)
    recorder.close()
    with (tmp_path / "log").open("rb") as file:
        _, (name, now, fields) = msgpack.Unpacker(file)
    assert (name, now, fields[1]) == (type(event).__name__, 1.0, [100, 0, 7])

"""The flight recorder: every event that a live planner got, so that a fresh one can be given them again.

Law: what is recorded is enough to plan again: the planner's settings, then every event with its time. It holds token
counts and chunk keys, never text or token ids. Recordings of earlier versions can be read.

A recording is a row of msgpack values: the settings as a map, then for each event its class's name, its time and its
fields in order.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, get_args

import msgpack

from llmaas.errors import BadRequest
from llmaas.planner.events import (
    FAILED,
    ChunksCame,
    ChunksFound,
    ContextChanged,
    ContextOpened,
    Drawn,
    Event,
    Failed,
    Fetched,
    FoundChunk,
    Lowered,
    Measured,
    Saved,
    StepDone,
    Stored,
    Written,
)
from llmaas.planner.settings import PlannerSettings
from llmaas.records import ChunkMeta, ChunkSensitivity, Geometry, Precision, StateSize

log = logging.getLogger(__name__)

_FAILED = 0
"""How a recording says that a chunk has no new copy, in place of its bytes."""
_EVENTS = {cls.__name__: cls for cls in get_args(Event)}


class Recorder:
    """Appends events to a file, and loses at most the last moments in a crash.

    A disk that fails ends the recording, nothing else.
    """

    def __init__(self, path: Path, settings: PlannerSettings) -> None:
        self._path = path
        self._file: BinaryIO | None = path.open("wb")
        self._pack = msgpack.Packer(default=_plain).pack
        self._file.write(self._pack(dataclasses.asdict(settings)))

    def write(self, event: Event, now: float) -> None:
        """Record that the planner got ``event`` at ``now``."""
        if self._file is None:
            return
        fields = [getattr(event, f.name) for f in dataclasses.fields(event)]
        try:
            self._file.write(self._pack([type(event).__name__, now, fields]))
        except (OSError, MemoryError) as error:
            log.error("%s: %s; the recording ends here", self._path, error)
            self._give_up()

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                log.error("%s: %s; the recording lacks its end", self._path, error)
                self._give_up()

    def _give_up(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # closing tries to write once more
                file.close()


def read(path: Path) -> tuple[PlannerSettings, Iterator[tuple[Event, float]]]:
    """The settings and events of a recorded run. Raises BadRequest if the file is not a recording."""
    file = path.open("rb")
    unpacker = msgpack.Unpacker(file, raw=False, use_list=False)
    try:
        head = dict(next(unpacker))
        head.setdefault("wear", "eager")  # versions that had no such choice wrote everything
        head["geometry"] = Geometry(**head["geometry"])
        head["precision"] = Precision(**head["precision"])
        head["state"] = StateSize(**head["state"]) if head.get("state") else None
        head.setdefault("rules", 2 if head.pop("precedence", False) else 1)
        settings = PlannerSettings(**head)
    except (StopIteration, TypeError, KeyError, ValueError, msgpack.UnpackException) as e:
        file.close()
        raise BadRequest(f"{path} is not a recording: {e}") from e

    def events() -> Iterator[tuple[Event, float]]:
        with file:
            for name, now, fields in unpacker:
                yield _event(name, fields), now

    return settings, events()


def _plain(value: Any) -> Any:
    """What msgpack gets for a value that it does not know."""
    match value:
        case Stored():
            return value.nbytes
        case Failed():
            return _FAILED
        case enum.Enum():
            return value.value
        case Precision():
            return value.k, value.v
        case _:
            raise TypeError(f"cannot record {value!r}")


def _event(name: str, fields: tuple[Any, ...]) -> Event:
    """An event from its recorded name and fields; those that are no plain values are made anew."""
    cls = _EVENTS[name]
    if cls is StepDone:
        step, drawn, steps = fields
        return StepDone(step, tuple(Drawn(d) for d in drawn), steps)
    if cls is Measured:
        return Measured(fields[0], tuple((key, ChunkSensitivity(*found)) for key, found in fields[1]))
    if cls is ChunksFound:
        return ChunksFound(_found(fields[0]))
    if cls is ChunksCame:
        return ChunksCame(fields[0], _found(fields[1]))
    if cls is ContextOpened and len(fields) > 5:
        fields = *fields[:5], _found(fields[5]), *fields[6:]
    if cls is ContextChanged and len(fields) > 4:
        fields = *fields[:4], _found(fields[4])
    if cls in (Fetched, Lowered, Saved, Written):
        number, sizes, *rest = fields
        fields = number, tuple(FAILED if nbytes == _FAILED else Stored(nbytes) for nbytes in sizes), *rest
    event: Event = cls(*fields)
    return event


def _found(chunks: tuple[tuple[Any, ...], ...]) -> tuple[FoundChunk, ...]:
    return tuple((key, nbytes, _meta(meta)) for key, nbytes, meta in chunks)


def _meta(fields: tuple[Any, ...] | None) -> ChunkMeta | None:
    if fields is None:
        return None
    (k, v), sensitivity = fields
    return ChunkMeta(Precision(k, v), None if sensitivity is None else ChunkSensitivity(*sensitivity))

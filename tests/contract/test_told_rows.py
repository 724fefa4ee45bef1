"""Rows that are told while steps go on are those that the steps return. The fake engine may tell none."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Engine, Halt
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.row_pipe import RowPipe, Telling
from tests.contract.support import begin
from tests.support.c_steps import C_STEPS

LONG = 60.0


def tells(engine: Engine) -> bool:
    return isinstance(engine, LlamaEngine) and C_STEPS


def first(engine: Engine, n_seqs: int = 1) -> list[BatchItem]:
    return begin(engine, 12, [Sampling()] * n_seqs)


def told_of(pipe: RowPipe, number: int, before: int) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    for told in pipe.read():
        assert (told.number, told.first) == (number, before + len(rows)), "in order, and none is left out"
        rows += told.rows
    return rows


def as_tuples(rows: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
    return [tuple(row) for row in rows]


@pytest.mark.parametrize(("n_seqs", "every"), [(1, 0.0), (3, 0.0), (1, 0.02)])
def test_what_is_told_meanwhile_is_what_the_steps_return(engine: Engine, n_seqs: int, every: float) -> None:
    pipe = RowPipe()
    telling = Telling(pipe.writes_at, 5, 9, 0.0, every)
    rows = engine.steps(first(engine, n_seqs), 20, LONG, Halt(), "", telling)
    told = told_of(pipe, 5, 9)
    assert len(told) == telling.told <= len(rows)
    assert told == as_tuples(rows)[: len(told)]
    if tells(engine):
        assert told, "nothing was told"
        assert len(told) < len(rows), "what comes with the end of the steps is not told"
        assert 0.0 <= telling.since_s < LONG
    plain = engine.steps(first(engine, n_seqs), len(rows), LONG, Halt())
    assert as_tuples(plain) == as_tuples(rows)[: len(plain)]


def test_rows_from_before_are_told_first(engine: Engine) -> None:
    pipe, ahead = RowPipe(), [[11], [12], [13]]
    telling = Telling(pipe.writes_at, 1, 4, 0.0, 0.0, ahead)
    rows = engine.steps(first(engine), 6, LONG, Halt(), "", telling)
    told = told_of(pipe, 1, 4)
    assert told == [*as_tuples(ahead), *as_tuples(rows)][: telling.told]
    if tells(engine):
        assert telling.told > len(ahead)


def test_more_rows_from_before_than_there_is_room_for_are_not_kept_waiting(engine: Engine) -> None:
    pipe = RowPipe()
    telling = Telling(pipe.writes_at, 1, 0, 0.0, 0.0, [[1]] * 1000)
    rows = engine.steps(first(engine), 20, LONG, Halt(), "", telling)
    assert telling.told == 0 and pipe.read() == []
    if tells(engine):
        assert len(rows) == 1, "they end when they should have told"


def test_steps_end_when_nobody_takes_what_they_tell(engine: Engine) -> None:
    pipe = RowPipe()
    with pytest.raises(BlockingIOError):
        while True:
            os.write(pipe.writes_at, b"\0" * 4096)
    telling = Telling(pipe.writes_at, 1, 0, 0.0, 0.0)
    rows = engine.steps(first(engine), 20, LONG, Halt(), "", telling)
    assert telling.told == 0
    if tells(engine):
        assert len(rows) == 1


def test_steps_that_tell_end_with_a_time_to_tell(engine: Engine) -> None:
    if not tells(engine):
        pytest.skip("it tells nothing")
    pipe = RowPipe()
    telling = Telling(pipe.writes_at, 1, 0, 0.0, 0.0)
    assert len(engine.steps(first(engine), 20, 0.0, Halt(), "", telling)) == 1 and telling.told == 0
    telling = Telling(pipe.writes_at, 1, 0, LONG, LONG)
    rows = engine.steps(first(engine), 3, 0.0, Halt(), "", telling)
    assert rows and telling.told == 0, "nothing was to be told before the end"
    halt = Halt()
    halt.set()
    assert len(engine.steps(first(engine), 20, LONG, halt, "", Telling(pipe.writes_at, 1, 0, 0.0, 0.0))) == 1

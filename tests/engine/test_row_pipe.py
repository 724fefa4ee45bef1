"""What is written to a pipe of rows is read from it, and the pipe lives as long as somebody holds it."""

from __future__ import annotations

import gc
import os

import pytest

from llmaas.engine.row_pipe import RowPipe, ToldRows
from tests.support.told_rows import record


def test_rows_are_read_as_they_were_written_and_once() -> None:
    pipe = RowPipe()
    assert pipe.read() == []
    os.write(pipe.writes_at, record(7, 0, [(1, 2), (3, 4), (5, 6)]))
    os.write(pipe.writes_at, record(7, 3, [(70_000, 0)]))
    assert pipe.read() == [ToldRows(7, 0, [(1, 2), (3, 4), (5, 6)]), ToldRows(7, 3, [(70_000, 0)])]
    assert pipe.read() == []


def test_a_full_pipe_takes_no_more_and_gives_all_that_it_took() -> None:
    pipe = RowPipe()
    one, n = record(1, 0, [tuple(range(8))] * 30), 0
    with pytest.raises(BlockingIOError):
        while True:
            assert os.write(pipe.writes_at, one) == len(one)
            n += 1
    assert n > 10 and sum(len(told.rows) for told in pipe.read()) == 30 * n


def test_nobody_need_close_it() -> None:
    pipe = RowPipe()
    ends = pipe.reads_at, pipe.writes_at
    del pipe
    gc.collect()
    for end in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)

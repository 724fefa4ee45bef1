"""Cells and sequences: who has them, and which idle contexts leave first."""

from __future__ import annotations

import pytest

from llmaas.errors import PolicyBug
from llmaas.planner.actions import Action, DropCells
from llmaas.planner.cell_table import CellTable
from llmaas.planner.context import Context
from llmaas.records import AppId, ContextId


def context(name: str, cells: int = 0) -> Context:
    return Context(ContextId(name), AppId("0/test"), [], cells, cells=cells)


def idle(table: CellTable, name: str, cells: int) -> Context:
    """A context that ran, filled so many cells, and stopped."""
    found = context(name)
    table.start(found, cells)
    found.cells = cells
    table.stop(found, cells)
    return found


def test_the_least_recently_run_leave_first_and_those_that_a_call_waits_for_last_paused_first() -> None:
    table = CellTable(100, 10)
    a, b, c, d = (idle(table, name, 25) for name in "abcd")
    a.wanted = b.wanted = True
    new = context("new")
    assert table.victims(25, new) == [c]
    assert table.victims(100, new) == [c, d, b, a]


def test_all_that_is_asked_for_or_nothing_leaves() -> None:
    table = CellTable(100, 10)
    a, b = idle(table, "a", 40), idle(table, "b", 40)
    b.unsaved = 1
    new = context("new")
    assert table.victims(20, new) == []
    assert table.victims(60, new) == [a]
    assert table.victims(61, new) is None
    b.unsaved, b.committing = 0, True
    assert table.victims(61, new) is None
    assert table.lacking(100) == 0 and table.lacking(101) == 1


def test_a_context_without_a_sequence_needs_one_even_if_there_are_cells() -> None:
    table = CellTable(100, 1)
    a, new = idle(table, "a", 10), context("new")
    assert table.has_seq_for(new) and table.victims(10, new) == [a]
    out: list[Action] = []
    table.trim(a, 0, out)
    assert out == [DropCells(0, 0)] and a.seq is None
    table.start(new, 10)
    assert new.seq == 0 and not table.has_seq_for(a)


def test_cells_cannot_be_overcommitted() -> None:
    table = CellTable(100, 2)
    idle(table, "a", 60)
    with pytest.raises(PolicyBug):
        table.start(context("b"), 41)
    assert table.check(nobody_runs=True) == ["cells overcommitted by 1", "41 cells reserved for nobody"]


def test_a_state_that_cannot_be_cut_leaves_as_a_whole() -> None:
    table = CellTable(100, 2, cuttable=False)
    a = idle(table, "a", 60)
    out: list[Action] = []
    table.trim(a, 60, out)
    assert out == []
    table.trim(a, 59, out)
    assert out == [DropCells(0, 0)] and a.cells == 0 and table.check(nobody_runs=True) == []

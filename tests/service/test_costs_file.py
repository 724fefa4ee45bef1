"""What a daemon has learned of its machine is there when it has ended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmaas.engine.fake import FakeEngine
from llmaas.errors import BadRequest
from llmaas.planner.cost_model import LearnedCosts
from llmaas.service.costs_file import MeasuredCosts, keep, read
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house

LEARNED = LearnedCosts((1e-3, 1e-4), (4e-3, 2e-3), None, (1e-3, 2e-3))


@on_a_loop
async def test_a_service_that_has_answered_leaves_what_it_learned(tmp_path: Path) -> None:
    path = tmp_path / "s.costs.json"
    async with house(tmp_path / "s", engine={"n_cells": 256}, pool_bytes=1 << 20, costs=path) as h:
        for name in "abab":
            if not any(info.name == name for info in h.service.contexts(APP)):
                await h.service.create(APP, name=name, system=None)
            await h.say(name, "word " * 20, 8)
            await h.service.wait_idle()
        assert not path.exists(), "written at the end"
    found = read(path)
    assert found.model == "fake"
    assert found.costs.compute is not None and found.costs.place is not None
    assert found.costs.compute[0] >= 0


@on_a_loop
async def test_a_service_that_has_done_nothing_leaves_no_file(tmp_path: Path) -> None:
    async with house(tmp_path / "s", costs=tmp_path / "s.costs.json"):
        pass
    assert not (tmp_path / "s.costs.json").exists()


def test_a_later_run_keeps_what_it_did_not_observe_but_only_of_the_same_model(tmp_path: Path) -> None:
    path, model = tmp_path / "c.json", FakeEngine(n_cells=256).info
    keep(path, model, LEARNED)
    keep(path, model, LearnedCosts(None, None, (1e-3, 3e-3), (5e-3, 2e-3)))
    assert read(path) == MeasuredCosts(
        model.title, model.size_bytes, replace(LEARNED, read=(1e-3, 3e-3), place=(5e-3, 2e-3))
    )
    keep(path, replace(model, size_bytes=7), LEARNED)
    assert read(path).costs == LEARNED
    keep(path, model, LearnedCosts(None, None, None, None))
    assert read(path).weights_bytes == 7, "nothing learned: nothing written"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"compute": 3}', "[" * 100_000, json.dumps({"model": "m"})])
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(BadRequest, match=r"c\.json"):
        read(tmp_path / "c.json")
    with pytest.raises(BadRequest):
        read(tmp_path / "none")


def test_costs_below_zero_or_without_end_are_refused(tmp_path: Path) -> None:
    whole = {"model": "m", "weights_bytes": 1, "compute": [1, 1], "decode": None, "read": None, "place": [1, 1]}
    (tmp_path / "c").write_text(json.dumps(whole))
    assert read(tmp_path / "c").costs.compute == (1.0, 1.0)
    for wrong in ([-1, 1], [float("inf"), 1], [0, 0], [1], [1, 2, 3], ["x", 1]):
        (tmp_path / "c").write_text(json.dumps(whole | {"compute": wrong}))
        with pytest.raises(BadRequest):
            read(tmp_path / "c")


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(tmp_path / "none" / "c.json", FakeEngine(n_cells=256).info, LEARNED)
    assert "cannot keep what was learned" in caplog.text

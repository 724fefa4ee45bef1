"""Benches keep what they measured: a run that is cut off goes on, and one that has ended is made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.lib.cli import Options, what_is_measured
from bench.lib.kept import Kept
from bench.quality.__main__ import drifting_cases
from bench.quality.contexts import Case, Probe
from bench.quality.lab import Score, as_row, from_row


def test_a_run_that_is_cut_off_goes_on_with_the_steps_that_it_lacks(tmp_path: Path) -> None:
    path, made = tmp_path / "out" / "k.jsonl", list[str]()

    def make(name: str) -> dict[str, float]:
        made.append(name)
        return {name: 1.5}

    first = Kept(path, "bench --quick")
    assert first.step("a", lambda: make("a")) == {"a": 1.5}
    with path.open("a") as file:
        file.write('{"run": "bench --quick", "step": "b", "val')  # the power went
    again = Kept(path, "bench --quick")
    assert again.resumed == 1
    assert again.step("a", lambda: make("a")) == {"a": 1.5}
    assert again.step("b", lambda: make("b")) == {"b": 1.5}
    assert made == ["a", "b"]
    assert Kept(path, "bench").resumed == 0, "other options are another run"
    again.end()
    assert Kept(path, "bench --quick").resumed == 0, "it has ended: the next one measures anew"


def test_a_step_that_fails_is_not_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "k", "r")
    with pytest.raises(ZeroDivisionError):
        kept.step("a", lambda: 1 / 0)
    assert Kept(tmp_path / "k", "r").find("a") is None


def test_the_time_that_is_left_is_said_while_steps_are_left(capsys: pytest.CaptureFixture[str]) -> None:
    kept = Kept()
    kept.expect(3)
    kept.put("a", 1, 60.0)
    assert capsys.readouterr().err == "a is done; 2 more, about 2 min\n"
    kept.put("b", 1, 60.0)
    assert capsys.readouterr().err == "", "not more often than every two seconds"


def test_steps_of_several_models_are_kept_apart(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "k", "r")
    for model in ("m", "n"):
        options = Options(True, 1, Path(f"/models/{model}.gguf"), 2, tmp_path, kept=kept)
        assert not options.has("s")
        assert options.step("s", lambda model=model: model) == model  # type: ignore[misc]
        assert options.has("s")


def test_options_that_change_no_figure_make_no_other_run() -> None:
    given = ["--quick", "--check", "--out", "a.jsonl", "--model", "m", "--dir", "/d"]
    assert what_is_measured(given) == ["--quick", "--model", "m"]


def test_scores_come_back_as_they_were() -> None:
    rng = np.random.default_rng(1)
    yes = rng.random(50) > 0.5
    score = Score("s", "c", "chat", "text", 4.1, rng.random(50, np.float32), yes, rng.random(50, np.float32), ~yes)
    again = from_row(as_row(score))
    for name in ("kld", "same", "nll", "right"):
        assert np.array_equal(getattr(score, name), getattr(again, name)), name
        assert getattr(score, name).dtype == getattr(again, name).dtype
    assert (again.setting, again.kind, again.bits) == ("s", "chat", 4.1)


@pytest.mark.parametrize(
    ("kinds", "quick", "chosen"),
    [
        (["document", "task_dialogue", "chat"], False, ["chat", "task_dialogue"]),
        (["document", "ui_automation"], False, ["ui_automation", "document"]),
        (["document", "ui_automation", "needle"], True, ["ui_automation"]),
        (["document", "needle"], False, ["document", "needle"]),
        ([], False, []),
    ],
)
def test_contexts_of_any_kinds_have_some_that_are_swapped_often(
    kinds: list[str], quick: bool, chosen: list[str]
) -> None:
    cases = [Case(f"{kind}-{i}", kind, (1,), (Probe("text", 0, (1,)),)) for kind in kinds for i in range(2)]
    assert [case.kind for case in drifting_cases(cases, quick)] == chosen
    assert all(case.name.endswith("-0") for case in drifting_cases(cases, quick))

"""The demo: its data and sizes, its figures and pictures, and a small but real run of the whole story."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llmaas.cli.demo import plot as demo_plot
from llmaas.cli.demo.crew import Crew, demo_environ
from llmaas.cli.demo.data import conversations
from llmaas.cli.demo.figures import figures, memory_check
from llmaas.cli.demo.lines import summary_rows
from llmaas.cli.demo.memory import Memory, memory_of
from llmaas.cli.demo.plan import AFTERWARDS, AppPlan, Plan, make_plan
from llmaas.cli.demo.records import ALONE, TOGETHER, DemoFindings, DemoTurn, Pair, Prefill, milliseconds
from llmaas.cli.demo.report import filesystem, report
from llmaas.cli.demo.run import Demo
from llmaas.cli.demo.schedule import schedule
from llmaas.cli.demo.summary import print_summary
from llmaas.cli.demo.tier_bar import bar
from llmaas.cli.demo.view import view
from llmaas.cli.demo.waits import waits_of
from llmaas.engine.llama.model import LlamaModel
from llmaas.errors import MachineError
from tests.cli.conftest import COMMAND, Run, clean_environ


def turn(
    part: str = ALONE, places: Sequence[int] = (0, 0, 640, 0), switch_ms: float = 10.0, at: float = 1.0
) -> DemoTurn:
    cells, pool, disk, none = places
    return DemoTurn(part, "music", at, 700, cells, pool, disk, none, 20, 28, switch_ms, 0.5, 90.0, 100.0)


def plan_of(*apps: str) -> Plan:
    chosen = [talk for talk in conversations() if talk.app in apps]
    made = tuple(AppPlan(talk, 4, 3 + AFTERWARDS, 100, 300, 400) for talk in chosen)
    return Plan(
        made,
        seconds=20,
        seed=3,
        pace=1.0,
        turns_each=2,
        n_compared=1,
        cells=512,
        pool_bytes=1 << 20,
        token_bytes=23040,
        coded_bytes=3 << 20,
    )


# -- data and sizes


def test_eight_apps_have_real_conversations_that_alternate_and_that_the_user_begins() -> None:
    talks = conversations()
    assert len({talk.app for talk in talks}) == 8
    for talk in talks:
        roles = [message.role for message in talk.turns]
        assert roles[0] == "user"
        assert all(a != b for a, b in pairwise(roles))
        assert all(message.content.strip() for message in talk.turns)
        assert talk.history(4)[0].role == "system"
        assert [m.role for m in talk.questions(4)] == ["user"] * len(talk.questions(4))


def test_the_data_carries_its_licence_and_its_source() -> None:
    folder = resources.files("llmaas.cli.demo").joinpath("texts")
    assert "MIT License" in folder.joinpath("LICENSE").read_text("utf-8")
    assert "chitchat-dataset" in folder.joinpath("ATTRIBUTION.md").read_text("utf-8")


@pytest.fixture(scope="module")
def model(model_path: Path) -> LlamaModel:
    return LlamaModel(model_path)


def test_memory_is_planned_for_a_third_of_what_the_contexts_need(model: LlamaModel) -> None:
    plan = make_plan(conversations(), model, 120, seed=1)
    assert plan.pool_bytes == plan.coded_bytes // 3
    assert plan.cells >= max(app.tokens_most for app in plan.apps)
    assert plan.cells_bytes + plan.pool_bytes < plan.f16_bytes / 3
    for app in plan.apps:
        assert app.tokens_first <= app.tokens_final <= app.tokens_most
        assert len(app.conversation.questions(app.n_history)) >= app.n_questions > AFTERWARDS


@pytest.mark.parametrize("seconds", [20, 120, 600, 3600])
def test_every_length_of_demo_leaves_each_app_something_to_say(model: LlamaModel, seconds: float) -> None:
    plan = make_plan(conversations(), model, seconds, seed=1)
    assert {*schedule(plan)} == {app.app for app in plan.apps}


def test_a_faster_machine_gets_longer_contexts_and_more_memory(model: LlamaModel) -> None:
    short, long = (make_plan(conversations(), model, 120, seed=1, pace=pace) for pace in (0.5, 1.0))
    assert short.tokens_final < long.tokens_final
    assert short.cells < long.cells
    assert short.pool_bytes < long.pool_bytes


@given(st.integers(0, 1000))
def test_every_app_comes_once_before_any_comes_twice_and_none_runs_out(seed: int) -> None:
    plan = dataclasses.replace(plan_of("music", "books", "coding"), seed=seed, turns_each=3)
    order = list(schedule(plan))
    assert len({*order[:3]}) == 3
    for app in plan.apps:
        assert order.count(app.app) <= app.n_questions - AFTERWARDS
    assert order == list(schedule(plan))


# -- figures


def test_a_turn_is_put_down_to_the_slowest_place_that_it_needed() -> None:
    sources = {
        places: turn(places=places).source for places in [(9, 0, 0, 0), (9, 9, 0, 0), (0, 9, 1, 0), (0, 0, 9, 1)]
    }
    assert list(sources.values()) == ["CELLS", "POOL", "DISK", "NONE"]
    assert turn(places=(0, 0, 0, 0)).source == "CELLS"


def test_a_switch_is_compared_with_computing_as_many_tokens() -> None:
    found = DemoFindings(prefills=[Prefill("music", 0, 100, 350, False), Prefill("music", 0, 300, 950, True)])
    assert found.prefill_ms(200) == pytest.approx(650)
    assert found.gains([turn(places=(0, 0, 200, 0), switch_ms=6.5)]) == [pytest.approx(100)]


def test_figures_keep_the_sources_and_the_crowded_calls_apart() -> None:
    found = DemoFindings(
        turns=[turn(switch_ms=8), turn(switch_ms=12), turn(places=(0, 640, 0, 0), switch_ms=4), turn(TOGETHER)],
        prefills=[Prefill("music", 0, 300, 950, False), Prefill("music", 1, 640, 2000, True)],
    )
    found.pairs = [Pair(found.prefills[1], turn(switch_ms=10))]
    made = figures(found, plan_of("music"))
    assert (made["switch"]["DISK"]["n"], made["switch"]["DISK"]["switch_p50_ms"]) == (2, 10)
    assert (made["switch"]["POOL"]["n"], "CELLS" in made["switch"], made["together"]["n"]) == (1, False, 1)
    assert made["paired"]["DISK"]["ratio_p50"] == pytest.approx(200)
    assert [row[0] for row in summary_rows(made)] == ["POOL", "DISK", "computed"]
    assert summary_rows(made)[1][-1] == "208x", "the median of 250 and 167"


def test_memory_over_the_bound_is_told() -> None:
    plan = plan_of("music")
    bound = 98_000_000 + 512 * 23040 + (1 << 20) + 150_000_000
    for peak, ok in ((bound, True), (bound + 1, False)):
        check, parts = memory_check(plan, 98_000_000, 512, Memory(1, 1, 2, peak))
        assert (check.ok, sum(parts.values())) == (ok, bound)
    assert not memory_check(plan, 1, 512, None)[0].ok


def test_memory_is_the_kernels_figure() -> None:
    mine = memory_of(os.getpid())
    assert mine is not None
    assert 0 < mine.rss <= mine.peak
    assert abs(mine.anon + mine.file - mine.rss) < 4 << 20
    assert memory_of(2**22 + 1) is None


def test_the_file_system_of_the_store_is_the_deepest_mount_around_it(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} tmpfs rw 0 0\nc {tmp_path}x btrfs rw 0 0\n", "utf-8")
    assert filesystem(tmp_path / "data", mounts) == "tmpfs"
    assert filesystem(Path("/"), mounts) == "ext4"
    assert filesystem(tmp_path, tmp_path / "absent") == "unknown"


@pytest.mark.parametrize(
    ("ms", "shown"), [(0.042, "0.04 ms"), (8.314, "8.31 ms"), (41.23, "41.2 ms"), (412.3, "412 ms"), (3912, "3.91 s")]
)
def test_times_have_three_figures_and_a_unit(ms: float, shown: str) -> None:
    assert milliseconds(ms) == shown


# -- screen and picture


@given(st.lists(st.integers(0, 5000), min_size=4, max_size=4))
def test_the_bar_shows_every_place_that_was_needed_in_a_fixed_width(places: list[int]) -> None:
    shown = bar(turn(places=places)).plain
    assert len({*shown}) == sum(n > 0 for n in places)
    assert len(shown) == (14 if sum(places) else 0)


def test_what_a_model_says_cannot_drive_the_terminal() -> None:
    out = io.StringIO()
    plan = plan_of("music", "books")
    with view(Console(file=out, force_terminal=True, width=120), plan, lambda: "gauge") as shown:
        shown.part("a part")
        shown.busy("music", "switching")
        shown.text("music", "x")
        shown.turn_ended(turn(), "evil\x1b]0;title\x07 and [bold]markup[/bold]")
    assert "\x1b]0;" not in out.getvalue()
    assert "evil" in out.getvalue() and "[bold]markup" in out.getvalue()


def test_without_a_terminal_every_turn_is_a_line() -> None:
    out = io.StringIO()
    with view(Console(file=out), plan_of("music"), lambda: "gauge") as shown:
        shown.prefill_ended(Prefill("music", 1.0, 500, 1500, True))
        shown.turn_ended(turn(places=(0, 320, 320, 0)), "an answer")
    first, second = out.getvalue().splitlines()
    assert "computed again in 1.50 s" in first
    assert "POOL 320, DISK 320" in second and "\x1b" not in second


def test_the_picture_shows_a_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = DemoFindings(
        turns=[turn(at=3), turn(TOGETHER, at=4), turn(places=(9, 0, 0, 0), switch_ms=0.0, at=5)],
        prefills=[Prefill("music", 1, 500, 1500, False), Prefill("music", 6, 700, 2100, True)],
    )
    samples = [(at / 10, Memory(90_000_000, 120_000_000, 210_000_000, 215_000_000)) for at in range(60)]
    bound = {"model": 98_000_000, "cells": 47_000_000, "pool": 30_000_000, "spare": 150_000_000}
    demo_plot.draw(tmp_path / "p.png", found, samples, bound, "a title")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_an_apps_waits_are_those_of_its_switches_alone() -> None:
    found = DemoFindings(
        turns=[
            turn(places=(0, 600, 0, 0), switch_ms=10.0),
            turn(places=(0, 800, 0, 0), switch_ms=30.0),
            turn(places=(900, 0, 0, 0), switch_ms=0.0),
            turn(TOGETHER, places=(0, 0, 800, 0), switch_ms=500.0),
        ],
        prefills=[Prefill("music", 1, 500, 1500, False), Prefill("books", 6, 1000, 3000, True)],
    )
    waits = waits_of("music", found)
    assert (waits.tokens, waits.source, waits.switch_ms) == (700, "POOL", 20.0)
    assert round(waits.again_ms) == 2100, "on the line through all prefills"
    again = DemoFindings(turns=found.turns, prefills=[*found.prefills, Prefill("music", 7, 700, 2000, True)])
    assert waits_of("music", again).again_ms == 2000, "measured"
    together = DemoFindings(turns=found.turns[2:], prefills=found.prefills)
    assert waits_of("music", together).source == "CELLS"


def test_matplotlib_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not demo_plot.available()


# -- the whole thing


def test_help_teaches_what_will_happen(llmaas: Run) -> None:
    done = llmaas("demo", "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("--quick", "--seconds", "--out", "what happens", "exit codes"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seconds", "3"], "from 20 to 3600"),
        (["--quick", "--seconds", "60"], "not allowed with"),
        (["--model", "/x"], "/x"),
    ],
)
def test_wrong_usage_is_told_before_anything_starts(llmaas: Run, tmp_path: Path, flags: list[str], told: str) -> None:
    done = llmaas("demo", "--out", str(tmp_path / "out"), *flags)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_an_app_that_fails_says_why(tmp_path: Path) -> None:
    crew = Crew(tmp_path / "none.sock", 1, demo_environ(tmp_path), lambda app, text: None)
    try:
        crew.start(plan_of("music").apps[0])
        with pytest.raises(MachineError, match="app music: no daemon serves"):
            crew.wait(["music"])
    finally:
        crew.kill()


def test_the_story_is_played_on_a_real_daemon(model_path: Path, tmp_path: Path) -> None:
    plan = plan_of("music", "books", "coding")
    out = io.StringIO()
    console = Console(file=out)
    demo = Demo(tmp_path, model_path, plan, view(console, plan, lambda: ""))
    try:
        demo.play()
    finally:
        demo.close()
    found = demo.findings
    assert [check for check in found.checks if not check.ok] == []
    assert [t.part for t in found.turns].count(TOGETHER) == 3
    assert len(found.pairs) == plan.n_compared
    assert found.turns[-1].disk > 0, "after the restart everything is on DISK"
    peak = demo.memory.peak
    assert peak is not None and peak.peak > 50 << 20
    _, bound = memory_check(plan, model_path.stat().st_size, found.stats["cells"]["total"], peak)
    memory = {"peak_bytes": peak.peak, "at_fullest": dataclasses.asdict(peak), "bound_parts": bound, "samples": []}
    made = report(found, plan, model_path, "SmolLM2", tmp_path, memory)
    assert json.loads(json.dumps(made, allow_nan=False))["turns"][0]["app"] in {"music", "books", "coding"}
    print_summary(console, found, plan, made)
    assert "After a restart" in out.getvalue()


@pytest.mark.slow
def test_a_quick_demo_leaves_its_results_and_nothing_else(llmaas: Run, tmp_path: Path) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    done = subprocess.run(
        [*COMMAND, "demo", "--quick", "--out", str(tmp_path / "out")],
        env=clean_environ(tmp_path) | {"TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"demo.json"}
    assert list(place.iterdir()) == []


def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "demo", "--quick", "--out", str(tmp_path / "out")],
        env=clean_environ(tmp_path) | {"TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if "every app brings" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.wait(30) == 130, rest
    assert list(place.iterdir()) == []
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in running if os.fsencode(place) in line]

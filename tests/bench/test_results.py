"""Pages of results and papers, and what is said of two result files: all of it from lines that benches print."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from bench import everything, results
from bench.lib.cli import Options
from bench.lib.kept import Kept
from bench.papers import ABLATION, BOUNDS_MS, DEVICES, HELD, WAYS, Case, before, held, mean_ms, settings_for
from bench.replay import own_options, plan_of
from bench.reporting import compared, papers, plain, virtual
from bench.reporting.markdown import command, table

MACHINE = {"cpu": "a CPU", "cores": 2, "others_cpu": 0.01}
PUBLISHED = json.loads((results.FOLDER / "published.json").read_text("utf-8"))


def line(bench: str, figures: dict[str, Any], **more: Any) -> dict[str, Any]:
    about = {"machine": MACHINE, "commit": "c", "time": "2026-01-01T", "model": "M"}
    return {"bench": bench, "command": f"python -m bench.{bench}", **about, "figures": figures, **more}


def papers_line() -> dict[str, Any]:
    ways = {way: 10.0 * (i + 1) for i, way in enumerate(WAYS)}
    mean = [{"device": d, "pattern": "markov", "way": w, "mean_ms": ms} for d in DEVICES for w, ms in ways.items()]
    rows = [{"device": d, "gb": gb, "at_10_ms": gb, "at_25_ms": 2 * gb} for d in DEVICES for gb in (1, 2, 3)]
    return line("papers", {"mean": mean, "ablation": [{"way": w, "mean_ms": 500.0} for w in ABLATION], "held": rows})


def test_without_results_the_page_of_papers_has_theirs_and_says_what_to_run() -> None:
    text = papers.page(PUBLISHED, [])
    assert "4.32 / 9.28" in text and "1460" in text and "0.29" in text
    assert text.count("Not measured here yet") == 5
    assert all(len(each) <= 100 for each in text.splitlines())


def test_ours_stand_beside_theirs() -> None:
    quantum = [{"fitting": f, "quantum": q, "tps": 50.0, "share": 0.5} for f in (1, 4) for q in (10, 100)]
    crossover = [{"tokens": 128, "compute_ms": 9, "read_ms": 3, "pool_ms": 2, "chosen_ms": 3}]
    switch = {"tokens": 4096, "tier": "POOL", "bytes_per_s": 0, "reprefill_over_switch": 500.0}
    switch |= {"switch_ms": {"median": 30.0}, "ttft_ms": {"median": 60.0}}
    client = {"clients": 16, "tokens_per_s": 99.0, "per_client": 6.2, "ttft_ms_p50": 1, "ttft_ms_p99": 2}
    lines = [
        papers_line(),
        line("crossover", {"disks": [{"crossover": None, "rows": crossover}]}),
        line("quantum", {"rows": quantum}),
        line("switch", {"runs": [{"bits": 4, "switches": [switch, {**switch, "bytes_per_s": 300}]}]}),
        line("scaling", {"rows": [{**client, "gap_ms_p50": 3, "gap_ms_p99": 4}]}),
    ]
    text = papers.page(PUBLISHED, lines)
    assert "Not measured" not in text
    assert "| ours, Xiaomi 14 | 1 / 2 | 2 / 4 | 3 / 6 |" in text
    assert "| ours, Jetson TX2, markov (10 ms) | 2 | 3 | 4 | 5 |" in text
    assert "| all parts | 0.27 | 0.5 |" in text
    assert "| ours, 128 tokens | 9 | 3 | 2 | 3 |" in text
    assert "| ours, 4 of 16 fit | 50 (50%) |  |  |  |  | 50 (50%) |" in text
    assert "| ours, from POOL | 15 | 0.06 | 250 |" in text
    assert text.count("ours, from") == 1, "a throttled disk is another matter"
    assert "| 16 | 99 | 6.2 | 1 | 2 | 3 | 4 |" in text
    assert all(len(each) <= 100 for each in text.splitlines())


def test_real_replays_are_named_with_their_contexts_and_memory() -> None:
    run = {"switch_ms": {"mean": 12.0}}
    programs = {"llmaas": {"runs": [run, run]}, "kill": {"runs": [{"switch_ms": {"mean": 1200.0}}]}}
    found = {"contexts": 60, "tokens": 143_000, "budget_bytes": 825_000_000, "programs": programs}
    text = papers.page(PUBLISHED, [line("replay", {"command": "c", "phone": found}, model="SmolLM2.gguf (Smol)")])
    assert "| SmolLM2, phone | 60 | 143000 | 825 | 12 | 100 |" in text


def test_eviction_and_predictions_are_sections_of_the_results() -> None:
    row = {"disk_over_pool": 3.0}
    summary = {name: {"mean_all": x, "disk_all": x} for name, x in (("lru", 1.0), ("returns", 0.95), ("belady", 0.6))}
    figures = {"slow": [row, row, row, {"disk_over_pool": 1.5}], "slow_summary": summary}
    (_, about, shown, means, disk) = virtual.eviction([line("policies", figures), line("policies", {})])
    assert "1 places" in about and "bench.policies" in shown
    assert "| returns | 0.95 |" in means and "| belady | 0.6 |" in disk
    pair = {name: [10.0, 11.0] for name in ("p50", "p90", "p99", "mean")}
    traces = {"markov": {"switch_ms": pair, "ttft_ms": pair, "written": [2e6, 1e6]}}
    text = "\n".join(virtual.predictions([line("plan", {"traces": traces})]))
    assert "| markov, switch, p50 | 10 | 11 | 1.1 |" in text
    assert "| markov, MB written | 2 | 1 | 0.5 |" in text


def test_other_benches_have_a_table_of_all_their_figures() -> None:
    ms = {"median": 1.25, "min": 0.5, "p10": 1.0, "p90": 2.0, "max": 3.0, "n": 5}
    rows = [{"busy": i, "steps": [{"at": 10 + i}]} for i in range(7)]
    figures = {"valid": 7, "ms": ms, "rows": [*rows, {"idle": 3}], "many": list(range(9))}
    text = results.page([line("schemas", figures)])
    assert "## Answers by JSON schemas: " in text
    below = ("rows | 7 | 8", "busy | 6 | ", "idle |  | 3", "rows 7.steps | 1", "at | 16")
    for row in ("valid | 7", "ms | 1.25 (1 to 2)", "busy | 0 | 1 | 2 | 3 | 4 | 5", "many | 9 numbers", *below):
        assert f"| {row} |" in text
    assert all((results.ROOT / f"bench/{bench}.py").exists() for bench in plain.BENCHES)


def test_steps_and_rows_of_runs_are_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for name in ("plan.jsonl", "plan.steps.jsonl", "replay.rows.jsonl"):
        (tmp_path / name).write_text(json.dumps(line("plan", {"of": name})) + "\n")
    assert [found["figures"]["of"] for found in results.read_lines()] == ["plan.jsonl"]


def test_of_a_bench_that_was_run_again_the_last_line_counts() -> None:
    old, new, other = line("plan", {"a": 1}), line("plan", {"a": 2}), line("switch", {})
    assert results.latest([old, other, new]) == [new, other]
    assert len(results.latest([old, {**old, "model": "N"}])) == 2


def test_what_moved_beyond_the_spread_of_three_lines_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(name: str, values: list[float], steady: float = 5.0) -> Path:
        rows = [line("switch", {"a": {"b": value}, "c": [steady], "command": "x"}) for value in values]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / name

    old, new = write("old", [10.0, 11.0, 10.5]), write("new", [14.0, 14.2, 14.1])
    assert compared.show(old, new) == 0
    out = capsys.readouterr().out
    assert "up   a.b: 10.5 -> 14.1 (spread 1)" in out
    assert "1 of 2 figures are within the spread" in out
    assert compared.show(old, write("same", [10.9, 10.1, 10.4])) == 0
    assert "2 of 2" in capsys.readouterr().out
    one, ten = write("one", [10.0]), write("ten", [10.9])
    assert compared.show(one, ten) == 0
    assert "2 of 2" in capsys.readouterr().out, "of single runs a tenth is no move"
    (tmp_path / "other").write_text(json.dumps(line("plan", {})))
    assert compared.show(old, tmp_path / "other") == 2


def test_numbers_are_found_wherever_they_are() -> None:
    figures = {"a": {"b": [1, {"c": 2.5}]}, "runs": [9], "t": True, "n": None}
    assert dict(compared.leaves(figures)) == {"a.b.0": 1, "a.b.1.c": 2.5}


def test_one_command_measures_all_that_the_pages_show_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = list(everything.measurements(Path("c.gz"), Path("m.gguf")))
    assert {found.bench for found in all_of_them} >= {"replay", "plan", "policies", "papers", "switch", "scaling"}
    assert len({found.file for found in all_of_them}) == len(all_of_them)
    for found in all_of_them:
        assert (results.ROOT / f"bench/{found.bench}.py").exists()
        if found.bench == "replay":
            given, rest = own_options().parse_known_args(found.command(True))
            assert set(rest) <= {"--quick", "--model", "m.gguf"}, found.file
            assert plan_of(given, quick=True).contexts >= 6
    monkeypatch.setattr(everything, "FOLDER", tmp_path)
    plan = next(found for found in all_of_them if found.file == "plan")
    assert not everything.is_done(plan, True, "abc")
    (tmp_path / "plan.jsonl").write_text(
        json.dumps(line("plan", {}, command="python -m bench.plan --quick", commit="abc"))
    )
    assert everything.is_done(plan, True, "abc")
    assert not everything.is_done(plan, False, "abc") and not everything.is_done(plan, True, "abd")


def test_tables_and_commands_fit() -> None:
    assert table(["a", "b"], [["x", 1.23456], ["y", None]]).splitlines()[2:] == ["| x | 1.235 |", "| y |  |"]
    text = command("python -m bench.replay " + " ".join(f"--option-{i} {i}" for i in range(20)))
    assert all(len(each) <= 100 for each in text.splitlines())
    assert text.replace(" \\\n ", "").count("--option") == 20
    names = ",".join(f"program-{i}" for i in range(30))
    text = command(f"python -m bench.replay --systems {names} --repeats 3")
    assert all(len(each) <= 100 for each in text.splitlines())
    found = shlex.split(text.strip("`\n").replace("\\\n", ""))
    assert found == ["python", "-m", "bench.replay", "--systems", names, "--repeats", "3"], "as a shell reads it"


@pytest.mark.parametrize("way", ["llmaas", "LMK", "Swapping"])
def test_the_papers_baselines_are_what_they_are_called(way: str) -> None:
    settings = settings_for(Case("Xiaomi 14", "markov", 2, 1 << 30, way), WAYS[way])
    assert (settings.disk_bytes == 0) == (way == "LMK")
    assert settings.precision.k == {"llmaas": 4, "LMK": 8, "Swapping": 16}[way]
    assert (settings.pool_bytes < 1 << 30) == (way != "llmaas")


def test_the_most_contexts_that_are_held_comply_with_all_smaller_numbers(tmp_path: Path) -> None:
    kept = Kept()
    for device in DEVICES:
        for gb in (1, 3):
            for n in HELD:
                ms = {1: 1.0, 2: 5.0, 3: 12.0, 4: 9.0}.get(n, 30.0)  # the fourth complies, the third does not
                kept.put(f"m.gguf: {Case(device, 'markov', n, gb << 30, 'held')}", ms, 0.0)
    options = Options(True, 1, Path("m.gguf"), 1, tmp_path, kept=kept)
    rows = list(held(options))
    assert len(rows) == 6
    assert all((row["at_10_ms"], row["at_25_ms"]) == (2, 4) for row in rows)
    assert BOUNDS_MS == (10.0, 25.0) and before(6) == 4 and before(1) == 0


def test_a_replay_of_the_papers_model_ends_with_a_mean() -> None:
    case = Case("Jetson Orin NX", "markov", 3, 1 << 30, "llmaas", hours=8)
    assert 0 < mean_ms(case, {}, seed=1) < mean_ms(case, WAYS["LMK"], seed=1)


def test_what_placers_made_of_a_cluster_stands_by_scene() -> None:
    row = {"nodes": 8, "calls": 1500, "start_s_p50": 0.5, "start_s_p99": 2.5, "first_s_p99": 3.0, "total_s_p99": 4.0}
    row |= {"loads": 7, "load_bytes": 3 * 10**12, "context_bytes": 5 * 10**9, "recomputed": 11, "calls_moved": 2}
    rows = [
        {**row, "scene": s, "placer": p, "preemptions": 1} for s in ("home", "far") for p in ("placement", "random")
    ]
    costs = {"nodes": 100, "contexts": 10_000, "decision_ms_p50": 0.25, "decision_ms_p99": 0.5, "turn_told_ms": 0.003}
    figures = {"scenes": rows, "decisions": [{**costs, "table_bytes_per_node": 9412}]}
    text = "\n".join(virtual.placement([line("cluster", figures)]))
    assert "**home**: 1500 calls, 8 nodes." in text and "**far**" in text
    assert text.count("| random | 0.5 | 2.5 | 3 | 4 | 7 | 3 | 5 | 11 | 2 | 1 |") == 2
    assert "| 100 | 10000 | 0.25 | 0.5 | 0.003 | 9412 |" in text

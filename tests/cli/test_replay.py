from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmaas.cli.main import main
from llmaas.cli.planner_choices import planner_choices
from llmaas.config.sources import load
from llmaas.planner.settings import PlannerChoices
from llmaas.records import NO_QUOTA

EVENING = Path(__file__).parents[2] / "traces" / "evening.jsonl"


def test_the_sample_trace_replays_and_less_memory_costs_more(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for cells, pool in (("65536", "1G"), ("4096", "16M")):
        assert main(["replay", str(EVENING), "--cells", cells, "--pool-bytes", pool, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    rich, poor = found
    assert rich["calls"] == poor["calls"] > 100
    assert rich["tokens_from_disk"] == 0 < poor["tokens_from_disk"]
    assert rich["switch_ms_p99"] < poor["switch_ms_p99"]


def test_a_slow_device_and_a_large_model_cost_more_and_knowing_the_future_less(
    capsys: pytest.CaptureFixture[str],
) -> None:
    means = []
    for flags in ([], ["--device", "sd"], ["--device", "sd", "--model-profile", "1B"]):
        for eviction in ("lru", "belady"):
            arguments = ["--cells", "4096", "--pool-bytes", "16M", "--eviction", eviction, *flags, "--json"]
            assert main(["replay", str(EVENING), *arguments]) == 0
            means.append(json.loads(capsys.readouterr().out)["switch_ms_mean"])
    fast, fast_least, slow, slow_least, large, _ = means
    assert fast < slow < large and fast_least < fast and slow_least < slow


def test_a_trace_comes_from_standard_input_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(EVENING.read_text().splitlines()[0]))
    assert main(["replay", "-"]) == 0
    assert "tokens_prefilled" in capsys.readouterr().out


def test_a_bad_trace_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t").write_text("nonsense\n")
    assert main(["replay", str(tmp_path / "t")]) == 2
    assert "line 1" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "none")]) == 2


def test_priorities_in_a_trace_show_what_the_scheduler_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    calls = [
        {"t": i / 10, "app": f"a{i % 5}", "context": "c", "prompt": 200, "generate": 60, "priority": 8}
        for i in range(60)
    ]
    calls += [{"t": 0.5 + i, "app": "u", "context": "c", "prompt": 20, "generate": 5, "priority": 1} for i in range(8)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, sorted(calls, key=lambda c: c["t"]))))
    found = {}
    for scheduling in ("fair", "fifo"):
        arguments = ["--scheduling", scheduling, "--max-running", "1", "--json"]
        assert main(["replay", str(tmp_path / "t.jsonl"), *arguments]) == 0
        found[scheduling] = json.loads(capsys.readouterr().out)
    assert found["fair"]["ttft_ms_priority_1_p99"] < 0.5 * found["fifo"]["ttft_ms_priority_1_p99"]
    assert found["fair"]["pauses"] > 0 == found["fifo"]["pauses"]


def test_a_replay_keeps_the_disk_quota(capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for quota in ("none", "16M"):
        memory = ["--cells", "4096", "--pool-bytes", "16M", "--disk-bytes", quota]
        assert main(["replay", str(EVENING), *memory, "--json"]) == 0
        found[quota] = json.loads(capsys.readouterr().out)
    assert found["none"]["chunks_left_disk"] == 0 < found["16M"]["chunks_left_disk"]
    assert found["none"]["tokens_recomputed"] < found["16M"]["tokens_recomputed"]


def test_what_nobody_has_set_is_the_same_for_the_daemon_and_for_a_service_made_in_python() -> None:
    config = load({}, {}).config
    assert replace(planner_choices(config), disk_bytes=NO_QUOTA) == PlannerChoices()

"""``llmaas plan``: what fits, how fast it switches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmaas.cli.main import main

SMALL = ["plan", "--model", "0.1B", "--ram", "1G", "--reserve", "512M", "--hours", "6"]
TRACES = Path(__file__).parents[2] / "traces"


def planned(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main([*SMALL, *more, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_plan_says_what_fits_and_how_fast_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--apps", "30", "--disk", "ufs4")
    assert sum(found["ram"][name] for name in ("others", "weights", "own", "cells", "pool", "free")) == 1 << 30
    lengths = {row["length"]: row for row in found["held"]}
    assert lengths[1024]["in_cells"] == found["ram"]["n_cells"] // 1024
    assert found["expected"]["switch_ms_p99"] >= found["expected"]["switch_ms_p50"] >= 0
    assert found["expected"]["bytes_written_a_day"] > 0
    assert sum(found["expected"]["from"].values()) == pytest.approx(1)
    assert found["prices"]["source"] == "tables: ufs4, pc"


def test_a_slower_disk_and_machine_are_slower(capsys: pytest.CaptureFixture[str]) -> None:
    p99 = []
    for disk, machine in (("nvme", "pc"), ("emmc", "pc"), ("sd", "board")):
        more = ["--pool-bytes", "8M", "--cells", "4096", "--apps", "12", "--disk", disk, "--machine", machine]
        p99.append(planned(capsys, *more)["expected"]["switch_ms_p99"])
    assert 0 < p99[0] < p99[1] < p99[2]


def test_the_table_for_people_has_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys)
    assert main(SMALL) == 0
    text = capsys.readouterr().out
    assert f"{found['ram']['n_cells']} cells" in text
    assert f"switch, p50                  {found['expected']['switch_ms_p50']:.1f} ms" in text
    assert "CONTEXTS OF" in text and "written a day" in text


def test_a_trace_of_ones_own_is_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--trace", str(TRACES / "evening.jsonl"), "--cells", "4096", "--pool-bytes", "8M")
    assert found["trace"]["contexts"] > 3
    assert found["expected"]["calls"] > 100
    assert found["expected"]["from"]["disk"] > 0


def test_a_gguf_file_tells_its_own_size(capsys: pytest.CaptureFixture[str], model_path: Path) -> None:
    found = planned(capsys, "--model", str(model_path))
    assert found["model"]["token_bytes"] == 23_040
    assert 90e6 < found["model"]["weights_bytes"] < 120e6


def test_what_a_daemon_has_learned_is_used_and_scaled_to_other_models(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    learned = {"compute": [2e-3, 1e-4], "decode": [4e-3, 4e-3], "read": [2e-3, 3e-3], "place": [1e-3, 1e-3]}
    (tmp_path / "data.costs.json").write_text(json.dumps({"model": "M", "weights_bytes": 75_937_500, **learned}))
    place = ["--measured", str(tmp_path / "data")]
    own, large = planned(capsys, *place), planned(capsys, *place, "--model", "1B", "--ram", "4G")
    assert own["prices"]["source"] == "learned with M; its disk"
    assert own["prices"]["prefill_token"] == pytest.approx(2e-3)
    assert large["prices"]["prefill_token"] == pytest.approx(2e-3 * 1.24 / 0.135, rel=1e-6)
    assert large["prices"]["code_byte"] == own["prices"]["code_byte"]
    other = planned(capsys, *place, "--disk", "sd")
    assert other["prices"]["disk_read_byte"] == 1 / 80e6
    assert other["prices"]["source"].endswith("tables: sd")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ram", "256M", "--reserve", "128M"], "too few"),
        (["--length", "9000"], "takes 8192 tokens"),
        (["--cells", "512", "--trace", str(TRACES / "evening.jsonl")], "grows beyond 512"),
        (["--measured", "/nowhere/data"], "/nowhere/data.costs.json"),
        (["--trace", "/nowhere/t.jsonl"], "cannot read"),
    ],
)
def test_what_cannot_be_planned_is_refused(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *flags]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--apps", "0"], ["--ram", "much"], ["--disk", "tape"], ["--hours", "-1"]])
def test_wrong_arguments_are_usage_errors(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, *flags])
    assert ended.value.code == 2


def test_a_daemon_that_has_learned_nothing_of_loading_is_no_measure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    learned = {"compute": [2e-3, 1e-4], "decode": None, "read": None, "place": None}
    (tmp_path / "d.costs.json").write_text(json.dumps({"model": "M", "weights_bytes": 1, **learned}))
    assert main([*SMALL, "--measured", str(tmp_path / "d")]) == 2
    assert "has not learned" in capsys.readouterr().err

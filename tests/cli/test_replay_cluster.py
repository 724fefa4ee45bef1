from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

from llmaas.cli import replay_cluster
from llmaas.cli.main import main
from llmaas.replay.cluster.placers import PLACERS

TRACE = str(Path(__file__).parents[2] / "traces" / "phone.jsonl")
CLUSTER = ["--cluster", "2xphone,board,gpu", "--models", "0.5B,1B,8B"]


def test_a_trace_goes_to_many_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", TRACE, *CLUSTER, "--placer", "all", "--speed", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found) == sorted(PLACERS)
    assert all(figures["served"] == figures["calls"] > 100 for figures in found.values())
    assert found["placement"]["start_s_mean"] < found["random"]["start_s_mean"]


def test_figures_are_shown_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", TRACE, *CLUSTER]) == 0
    out = capsys.readouterr().out
    assert "placement" in out.splitlines()[0] and "start_s_p99" in out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cluster", "4xtoaster"], "is none of board, phone"),
        (["--cluster", ""], "is none of"),
        (["--cluster", "0xgpu"], "1 to 1000 are possible, not 0"),
        (["--cluster", "1001xgpu"], "1 to 1000 are possible, not 1001"),
        (["--cluster", "gpu", "--models", "9T"], "--models: '9T' is none of"),
        (["--cluster", "gpu", "--speed", "0"], "--speed is a number above 0"),
        (["--cluster", "gpu", "--speed", "nan"], "--speed is a number above 0"),
    ],
)
def test_what_is_not_possible_is_said(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", TRACE, *flags]) != 0
    assert says in capsys.readouterr().err


def test_examples() -> None:
    assert doctest.testmod(replay_cluster).failed == 0

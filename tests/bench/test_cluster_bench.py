"""What ``bench.cluster`` measures, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import cluster
from llmaas.replay.cluster.placers import PLACERS


def test_a_decision_is_made_for_every_call_and_bytes_are_counted() -> None:
    found = cluster.decided(10, 200, seed=1)
    assert found["decision_ms_p50"] <= found["decision_ms_p99"]
    assert found["table_bytes"] == 10 * found["marks"] and found["marks"] > 200 * 4
    assert found["sent_bytes_per_node"] >= 8 * 20 * 4
    assert cluster.kept_in_a_dict(200, seed=1) > 40


def test_without_the_traces_a_generated_one_is_taken_for_the_bars_and_other_scenes_are_left_out(tmp_path: Path) -> None:
    assert cluster.scenes_there(tmp_path, quick=False) == ["bursts", "generated"]
    calls = cluster.calls_of("bursts", tmp_path, quick=True)
    assert len(calls) > 1000 and calls == cluster.calls_of("bursts", tmp_path, quick=True)


@pytest.mark.parametrize("trace", ["code", "mooncake"])
def test_a_trace_that_is_there_is_taken(trace: str, tmp_path: Path) -> None:
    name = next(name for name, scene in cluster.SCENES.items() if scene.trace == trace)
    path = cluster.path_of(trace, tmp_path)
    path.parent.mkdir()
    lines = {
        "code": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n",
        "mooncake": '{"timestamp": 0, "input_length": 600, "output_length": 10, "hash_ids": [0, 1]}\n',
    }
    path.write_text(lines[trace], encoding="utf-8")
    assert name in cluster.scenes_there(tmp_path, quick=False)
    (call,) = cluster.calls_of(name, tmp_path, quick=False)
    assert call.generate == 10
    row = cluster.replayed(name, "placement", tmp_path, 1, quick=False)
    assert row["served"] == 1 and set(PLACERS) >= {row["placer"]}

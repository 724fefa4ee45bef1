"""What ``bench.on_ray`` measures, in small."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import on_ray
from bench.lib.cli import Options


def test_a_text_has_as_many_characters_as_are_wanted_and_is_another_for_each_seed() -> None:
    rng = random.Random(1)
    first, second = on_ray.text(rng, 600), on_ray.text(rng, 600)
    assert 0 < len(first) <= 600 and first != second
    assert on_ray.text(random.Random(1), 600) == first


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: the extra cluster")
def test_starts_decisions_and_recovery_are_measured_on_a_real_cluster(tmp_path: Path, gguf: Path) -> None:
    options = Options(True, 1, gguf, 1, tmp_path)
    found = on_ray.measured(options, on_ray.Load(3, 8, 8.0, begun=100), 10)
    assert set(found["starts"]) == {"placement", "random"}
    assert all(0 < each["p50_s"] <= each["p99_s"] for each in found["starts"].values())
    assert (found["decisions"]["n"], found["decisions"]["p50_ms"] > 0) == (10, True)
    assert all(seconds > 0 for seconds in found["recovery"].values())

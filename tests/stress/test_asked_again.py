"""``asked_again`` for a moment: requests that are disturbed and asked again are carried out once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def asked_again(*options: str) -> str:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in [str(ROOT), *sys.path] if p)}
    command = [sys.executable, "-m", "tests.stress.asked_again", *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_requests_that_are_disturbed_and_asked_again_are_carried_out_once() -> None:
    told = asked_again("--times", "36", "--seed", "3")
    assert "SIGKILL 12, SIGTERM 12, cut 12" in told and "in the answer" in told


def test_the_same_with_a_real_model(model_path: Path) -> None:
    assert "RealDaemon: 3 requests" in asked_again("--times", "0", "--real", "3")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_requests_that_are_disturbed_are_carried_out_once() -> None:
    told = asked_again("--times", "1000", "--real", "30")
    for stored in ("nothing", "a part of it", "the whole turn"):
        assert stored in told

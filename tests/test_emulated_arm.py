"""scripts/test-aarch64 says why it does nothing where it cannot do anything. What it does itself takes minutes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "test-aarch64"


@pytest.mark.parametrize(
    ("command", "answer", "why"),
    [("id", "1000", "only root"), ("uname", "aarch64", "this machine is one"), ("grep", "", "no Debian")],
)
def test_where_it_cannot_work_it_says_so_and_makes_nothing(tmp_path: Path, command: str, answer: str, why: str) -> None:
    """A command that says what it would say on another machine."""
    checkout, stubs = tmp_path / "checkout", tmp_path / "stubs"
    (checkout / "scripts").mkdir(parents=True)
    (checkout / "scripts" / SCRIPT.name).write_text(SCRIPT.read_text("utf-8"))
    (checkout / "pyproject.toml").write_text('"llama-cpp-python==1.2.3"')
    stubs.mkdir()
    answers = {"id": "0", "uname": "x86_64", command: answer}
    for name, text in answers.items():
        (stubs / name).write_text(f"#!/bin/sh\ntest -n '{text}' && echo {text}\n")
        (stubs / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", checkout / "scripts" / SCRIPT.name], env=environ, capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("test-aarch64: skipped: ") and why in ran.stdout
    assert sorted(path.name for path in checkout.iterdir()) == ["pyproject.toml", "scripts"]

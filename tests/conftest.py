"""What every test may ask for: the real model's file, and a world without the user's own settings."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from llmaas.config import models

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
"""Threads of llama.cpp spin for each other only briefly, also in the processes that tests start.

libgomp reads it when it is loaded, which is later. Without it two threads that share two cores with one busy process
decode fewer than 2 tokens a second (docs/engine.md), and tests that take a second run into their time limits.
"""
signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell's background jobs, and all that they start, ignore SIGINT, which tests send to what they start."""

# A busy machine is no failure.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The packaged SmolLM2-135M; scripts/setup installs it, so a missing one is a failure, not a skip."""
    path = models.packaged()
    if path is None:
        pytest.fail("the model package is missing: run scripts/setup")
    return path


@pytest.fixture(scope="session")
def gguf(request: pytest.FixtureRequest) -> Path:
    """The real model's file; without it tests fail, unless LLMAAS_NO_MODEL=1 says that this is meant."""
    if os.environ.get("LLMAAS_NO_MODEL") == "1":
        pytest.skip("LLMAAS_NO_MODEL=1")
    path = request.getfixturevalue("model_path")
    assert isinstance(path, Path)
    return path


@pytest.fixture
def bare_environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No LLMAAS_ and XDG_ variables, and a home of its own; returns that home."""
    for name in list(os.environ):
        if name.startswith(("LLMAAS_", "XDG_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home

"""The benches of models, as far as they can be tried without a large one."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import one_model
from bench.lib.daemon import wait_for_socket
from bench.lib.load_once import ours
from llmaas.model_files.load_memo import LoadMemo
from tests.support.random_models import write_llama


def test_a_held_model_is_measured_with_all_of_its_pages_in_ram(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if limit != resource.RLIM_INFINITY and limit < 2 * model.stat().st_size:
        pytest.skip("this process may not lock so much memory")
    found = ours(model, 1, LoadMemo(tmp_path / "loads.json"), then="held")
    assert found["held"] and found["resident_parked"] == 1.0 and found["back"] > 0


def test_without_a_clone_the_version_before_is_refused_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_model, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(RuntimeError, match=f"a clone of the repository with the commit {one_model.BEFORE}"):
        one_model.former(tmp_path / "before")


def test_a_socket_that_nobody_listens_on_is_no_daemon(tmp_path: Path) -> None:
    path, log = tmp_path / "s", tmp_path / "log"
    log.write_text("why it ended")
    with socket.socket(socket.AF_UNIX) as bound, subprocess.Popen([sys.executable, "-c", ""]) as ended:
        bound.bind(str(path))
        ended.wait(60)
        with pytest.raises(RuntimeError, match="did not start:\nwhy it ended"):
            wait_for_socket(path, ended, log)
        bound.listen()
        wait_for_socket(path, ended, log)

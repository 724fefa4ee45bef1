"""Ray's own command, by a stand-in for it: what it begins goes on, and nobody waits for that."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from llmaas.errors import MachineError
from llmaas.nodes.cluster.ray_start import start_head, start_part

CHILD_S = 40
"""Seconds that what Ray has begun goes on by itself; every test ends it before."""
STAND_IN = f"""
import os, subprocess, sys
from pathlib import Path
here = Path(os.environ["STAND_IN"])
goes_on = f"import time, pathlib; time.sleep({CHILD_S}); pathlib.Path({{str(here / 'ended')!r}}).touch()"
child = subprocess.Popen([sys.executable, "-c", goes_on], stdin=subprocess.DEVNULL)
(here / "child").write_text(str(child.pid))
(here / "words").write_text(" ".join(sys.argv[1:]))
(here / "to_stderr").write_text(os.environ.get("RAY_LOG_TO_STDERR", ""))
print("said" * 100_000)
print("before that\\nno room for it", file=sys.stderr)
sys.exit(int(os.environ["STAND_IN_CODE"]))
"""


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Path]]:
    """Have a stand-in for Ray, which leaves with this code. The folder where it leaves word."""
    package = tmp_path / "ray" / "scripts"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "scripts.py").write_text(STAND_IN)
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # what is found there is put back

    def made(code: int) -> Path:
        monkeypatch.setenv("STAND_IN_CODE", str(code))
        return tmp_path

    yield made
    with suppress(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def goes_on(folder: Path) -> bool:
    """Whether what the stand-in has begun still runs."""
    return not (folder / "ended").exists()


def test_a_head_has_begun_when_the_command_has_ended_whoever_holds_its_output(ray: Callable[[int], Path]) -> None:
    folder = ray(0)
    start_head("127.0.0.1:6390")
    assert goes_on(folder), "it was waited for what Ray has begun"
    assert (folder / "words").read_text().startswith("start --head --node-ip-address=127.0.0.1 --port=6390 ")


def test_what_ray_says_last_is_told_at_once_if_it_does_not_start(ray: Callable[[int], Path]) -> None:
    folder = ray(3)
    with pytest.raises(MachineError, match="Ray does not start: no room for it"):
        start_part("127.0.0.1:6390", "127.0.0.2")
    assert goes_on(folder), "it was waited for what Ray has begun"


def test_what_ray_begins_logs_to_its_own_files(ray: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LOG_TO_STDERR", "1")
    folder = ray(0)
    start_head("127.0.0.1:6390")
    assert (folder / "to_stderr").read_text() == "0"

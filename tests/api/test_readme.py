"""The README's Python example runs as it stands, but for the socket's path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.scripted import serving_in_a_thread

README = Path(__file__).parents[2] / "README.md"
SOCKET = "/run/user/1000/llmaas/llmaas.sock"


def test_the_python_example_of_the_readme_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert SOCKET in code
    path = tmp_path / "llmaas.sock"
    with serving_in_a_thread(path):
        exec(compile(code.replace(SOCKET, str(path)), str(README), "exec"), {})
    assert capsys.readouterr().out.startswith("0 SwitchReport(")

"""The README's Python example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.scripted import serving_in_a_thread

README = Path(__file__).parents[2] / "README.md"


def test_the_python_example_of_the_readme_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    path = tmp_path / "llmaas.sock"
    monkeypatch.setenv("LLMAAS_SOCKET", str(path))
    with serving_in_a_thread(path):
        exec(compile(code, str(README), "exec"), {})
    assert capsys.readouterr().out == "0 \n0 0\n"

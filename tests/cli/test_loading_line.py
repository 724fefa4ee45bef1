"""The line that says how long a model takes to load."""

from __future__ import annotations

import pytest

from llmaas.calls import Loading
from llmaas.cli.loading_line import LINE_AGAIN, LoadingLine


def test_it_says_how_long_it_takes_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    line = LoadingLine()
    line.clear()
    line(Loading("coder", 2.1))
    line(Loading("coder", None))
    line.clear()
    line.clear()
    shown = capsys.readouterr().err
    assert shown == f"{LINE_AGAIN}loading coder, about 3 s more{LINE_AGAIN}loading coder{LINE_AGAIN}"

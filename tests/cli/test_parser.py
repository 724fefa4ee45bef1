"""A name that is nearly right gets a suggestion, and stays an error."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("serve --pool 64M", "Did you mean --pool-bytes?"),
        ("serve --pool=64M", "Did you mean --pool-bytes?"),
        ("serve --disk 2G --thread 3", "Did you mean --disk-bytes and --threads?"),
        ("chat notes --temprature 0", "Did you mean --temperature?"),
        ("ctx truncate notes --message 2 --tokens 3", "Did you mean --messages?"),
        ("budget --pool-bytes 64M", "Did you mean --pool?"),
        ("sevre", "Did you mean serve?"),
        ("ctx lst", "Did you mean ls?"),
    ],
)
def test_what_was_meant_is_suggested(line: str, hint: str, llmaas: Run) -> None:
    done = llmaas(*line.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"  hint: {hint}"


@pytest.mark.parametrize("line", ["serve --zzz", "ctx ls --messages 2", "stats -q"])
def test_nothing_is_suggested_where_nothing_is_near(line: str, llmaas: Run) -> None:
    done = llmaas(*line.split())
    assert done.returncode == 2
    assert "hint" not in done.stderr


@pytest.mark.parametrize(
    "line", ["ctx ls", "ctx show", "ctx rm", "ctx migrate", "ctx fork", "ctx hint", "ctx truncate", "adapter ls"]
)
def test_every_action_has_help_with_examples_of_its_own(line: str, llmaas: Run) -> None:
    shown = llmaas(*line.split(), "--help").stdout
    examples = shown.partition("\nexamples:\n")[2].splitlines()
    assert examples and all(example.startswith(f"  llmaas {line} ") for example in examples)

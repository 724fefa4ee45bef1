"""Figures and tables for people."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.cli.out import bold, human_age, human_bytes, printable, table
from llmaas.cli.stats import lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 42, "20.0 TiB")]
)
def test_bytes_are_shown_in_the_unit_that_fits(n: int, text: str) -> None:
    assert human_bytes(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "just now"), (5, "5 s"), (119, "1 min"), (7200, "2 h"), (86400 * 12, "12 d")]
)
def test_ages_are_shown_in_their_largest_unit(seconds: float, text: str) -> None:
    assert human_age(seconds) == text


def test_a_table_aligns_words_left_and_figures_right() -> None:
    text = table(["NAME", "N"], [["a", 5], ["long name", 1000]], io.StringIO())
    assert text == "NAME          N\na             5\nlong name  1000"


def test_a_table_without_rows_is_its_head() -> None:
    assert table(["NAME", "N"], [], io.StringIO()) == "NAME  N"


@given(st.text())
def test_nothing_printable_drives_a_terminal(text: str) -> None:
    shown = printable(text, keep="\n")
    assert len(shown) == len(text)
    assert not any(c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160) for c in shown)
    shown.encode("utf-8")


def test_words_of_any_script_and_joined_emoji_stay_as_they_are() -> None:
    text = "naïve Ünïcode 漢字 👩\u200d🚀"
    assert printable(text) == text


def test_style_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert bold("x", Terminal()) == "\x1b[1mx\x1b[0m"
    assert bold("x", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert bold("x", Terminal()) == "x"


def test_stats_show_groups_histograms_and_units() -> None:
    figures = {
        "model": "m\x1b[31m",
        "pool_bytes": {"used": 2048, "budget": 1 << 20},
        "switch_ms": {"count": 3, "p50": 1.25, "p99": 9.0},
        "answer": True,
    }
    assert list(lines(figures)) == [
        "model      m\N{REPLACEMENT CHARACTER}[31m",
        "pool_bytes",
        "  used    2.0 KiB",
        "  budget  1.0 MiB",
        "switch_ms  count 3  p50 1.25  p99 9",
        "answer     True",
    ]

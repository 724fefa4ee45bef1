"""The report of a replay: one HTML file, which loads nothing.

Law: every figure on it is of the journal that it is made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from bench.replaying.figures import over_repeats, same_answers, summary
from bench.replaying.journal import Row
from bench.replaying.svg import Points, plot
from bench.replaying.systems import EXACT

Runs = Mapping[str, Sequence[Sequence[Row]]]
"""Of each program, the rows of each repeat."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
svg { width: 100%; height: auto } small { color: #666 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } svg text { fill: #ccc } }
"""
COLUMNS = (
    ("TTFT p50", "ttft_ms.p50", 1.0),
    ("p90", "ttft_ms.p90", 1.0),
    ("p99", "ttft_ms.p99", 1.0),
    ("max", "ttft_ms.max", 1.0),
    ("switch p50", "switch_ms.p50", 1.0),
    ("p99", "switch_ms.p99", 1.0),
    ("prefill p50", "prefill_ms.p50", 1.0),
    ("token gap", "stream_ms.alone.p50", 1.0),
    ("max", "stream_ms.alone.max", 1.0),
    ("while others come back", "stream_ms.during.p50", 1.0),
    ("max", "stream_ms.during.max", 1.0),
    ("same context", "ttft_same_ms.p50", 1.0),
    ("after restart", "ttft_restart_ms.p50", 1.0),
    ("peak MB", "peak_anonymous", 1e-6),
    ("read MB", "took.read_bytes", 1e-6),
    ("written MB", "took.written_bytes", 1e-6),
    ("CPU s", "took.cpu_s", 1.0),
    ("J", "took.energy_j", 1.0),
    ("failed", "failed", 1.0),
    ("others' CPU %", "others_cpu", 100.0),
)


def page(runs: Runs, title: str, about: Mapping[str, Any]) -> str:
    """The whole file. ``about``: machine, model and work, shown as they are."""
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p><small>{escape(', '.join(f'{name}: {value}' for name, value in about.items()))}</small></p>",
        "<h2>Calls of another context than the one before</h2>",
        "<p>Milliseconds, medians over repeats. <b>TTFT</b>: from the app's call to its first token. <b>switch</b>: of "
        "it, until all KV was there, where a program tells it. <b>prefill</b>: what then computing took. <b>token "
        "gap</b>: between the tokens of one answer that is streamed, alone and while other contexts are called.</p>",
        _table(runs),
        "<h2>Time to the first token: part of calls that took at most so long</h2>",
        plot({name: _shares(repeats) for name, repeats in runs.items()}, "milliseconds", "part of calls", log_x=True),
        "<h2>The same, call by call</h2>",
        plot({name: _calls(repeats[0]) for name, repeats in runs.items()}, "call", "ms", log_y=True, dots=True),
        "<h2>Anonymous memory</h2>",
        plot({name: _memory(repeats[0]) for name, repeats in runs.items()}, "second of the run", "MB"),
        "<h2>Where contexts were (the service alone)</h2>",
        _tiers(runs),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    return f"{head}<style>{_STYLE}</style>\n" + "\n".join(sections) + "</html>\n"


def _table(runs: Runs) -> str:
    reference = runs.get(EXACT, ())
    rows = []
    for name, repeats in runs.items():
        found = [summary(rows_of) for rows_of in repeats]
        cells = [_cell(over_repeats(found, path), scale) for _, path, scale in COLUMNS]
        same = same_answers(repeats[0], reference[0]) if reference else None
        rows.append([name, *cells, "" if same is None else f"{same:.0%}", str(len(repeats))])
    return table([*("program", *(column[0] for column in COLUMNS)), "same answers", "runs"], rows)


def _cell(found: tuple[float, float] | None, scale: float) -> str:
    if found is None:
        return ""
    middle, spread = found
    return f"{middle * scale:.4g}" + (f" ± {spread * scale / 2:.2g}" if spread else "")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def _tiers(runs: Runs) -> str:
    rows = []
    for name, repeats in runs.items():
        for place, found in summary(repeats[0])["tiers"].items():
            shown = [found[what][p] for what in ("switch_ms", "ttft_ms") for p in ("mean", "p50", "p99")]
            rows.append([f"{name}, {place}", str(found["ttft_ms"]["n"]), *(f"{each:.4g}" for each in shown)])
    return table(["most tokens from", "calls", "switch mean", "p50", "p99", "TTFT mean", "p50", "p99"], rows)


def switched(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["row"] == "call" and row["switches"] and row["n_new"]]


def _shares(repeats: Sequence[Sequence[Row]]) -> Points:
    found = sorted(row["ttft_ms"] for rows in repeats for row in switched(rows))
    steps = [(each, (i + 1) / len(found)) for i, each in enumerate(found)]
    return [(found[0], 0.0), *steps] if found else []


def _calls(rows: Sequence[Row]) -> Points:
    return [(row["number"], row["ttft_ms"]) for row in switched(rows)]


def _memory(rows: Sequence[Row]) -> Points:
    end = next((row for row in rows if row["row"] == "end"), {})
    return [(t, anonymous / 1e6) for t, _, anonymous in end.get("memory", ())]

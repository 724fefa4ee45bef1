"""The demo's picture: for each app what a switch takes and what computing anew does, and the daemon's memory.

Law: matplotlib is optional; without it there is no picture, and everything else goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.cli.demo.memory import Memory
from llmaas.cli.demo.records import DemoFindings, milliseconds
from llmaas.cli.demo.waits import Waits, waits_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOW = "pip install 'llmaas[demo]'"
_PREFILL, _SWITCH, _FIRST = "#c03028", "#1f7fb4", "#9fb8c9"
_WIDTH = 0.28
"""Of a bar; the apps are 1 apart."""
_LEAST_MS = 0.01
_GAP_S = 0.5
"""Samples further apart than this have a restart between them."""
_MB = 1e6


def available() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(
    path: Path, findings: DemoFindings, samples: Sequence[tuple[float, Memory]], bound: Mapping[str, int], title: str
) -> None:
    """Write the PNG. ``bound`` is the allowed memory by parts. Needs matplotlib (``available``)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    figure.suptitle(title)
    _draw_waits(above, [waits_of(app, findings) for app in dict.fromkeys(turn.app for turn in findings.turns)])
    _draw_memory(below, samples, bound)
    figure.savefig(path, dpi=110)


def _draw_waits(axes: Axes, waits: Sequence[Waits]) -> None:
    """A group of bars for each app, each with its time above it."""
    bars = {
        "context computed again": (_PREFILL, [wait.again_ms for wait in waits]),
        "context switched in": (_SWITCH, [wait.switch_ms for wait in waits]),
        "the user's first token, switch included": (_FIRST, [wait.first_ms for wait in waits]),
    }
    for i, (label, (colour, times)) in enumerate(bars.items()):
        shown = [max(ms, _LEAST_MS) for ms in times]
        drawn = axes.bar([n + (i - 1) * _WIDTH for n in range(len(waits))], shown, _WIDTH, color=colour, label=label)
        axes.bar_label(drawn, [milliseconds(ms) for ms in times], padding=2, fontsize=7, rotation=90)
    axes.set_xticks(range(len(waits)), [f"{wait.app}\n{wait.tokens} tokens\nfrom {wait.source}" for wait in waits])
    axes.set_yscale("log")
    axes.margins(y=0.25)
    axes.set_ylabel("milliseconds (log); medians")
    axes.grid(True, axis="y", which="major", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.13), ncols=3, frameon=False)


def _draw_memory(axes: Axes, samples: Sequence[tuple[float, Memory]], bound: Mapping[str, int]) -> None:
    times, file, anon = _with_gaps(samples)
    axes.stackplot(
        times, file, anon, labels=("mapped files: model, libraries", "its own"), colors=("#b9c4cf", "#6f8fae")
    )
    tops = list(accumulate(bound.values()))
    for i, (name, top) in enumerate(zip(bound, tops, strict=True)):
        last = i == len(tops) - 1
        axes.axhline(top / _MB, color=_PREFILL if last else "#888888", linestyle="-" if last else ":", linewidth=1)
        axes.annotate(
            ("+ " if i else "") + name + (" = allowed" if last else ""),
            (1.0, top / _MB),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va=("top", "center", "bottom", "center")[i],
            fontsize=8,
        )
    axes.set_ylim(0, tops[-1] / _MB * 1.12)
    axes.set_ylabel("daemon's resident memory, MB")
    axes.set_xlabel("seconds since the demo began")
    axes.grid(True, alpha=0.3)
    axes.legend(loc="lower right", framealpha=0.9)


def _with_gaps(samples: Sequence[tuple[float, Memory]]) -> tuple[list[float], list[float], list[float]]:
    """Times, file and anonymous MB, with nothing where there was no daemon."""
    times: list[float] = []
    file: list[float] = []
    anon: list[float] = []
    for at, memory in samples:
        if times and at - times[-1] > _GAP_S:
            times += [times[-1], at]
            file += [0.0, 0.0]
            anon += [0.0, 0.0]
        times.append(at)
        file.append(memory.file / _MB)
        anon.append(memory.anon / _MB)
    return times, file, anon

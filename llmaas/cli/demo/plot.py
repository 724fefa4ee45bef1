"""The demo's picture: switches over time against computing anew, and the daemon's memory against its bound.

Law: matplotlib is optional; without it there is no picture, and everything else goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.cli.demo.memory import Memory
from llmaas.cli.demo.records import CELLS, DISK, POOL, RECOMPUTED, TOGETHER, DemoFindings, DemoTurn, Prefill, p50

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOW = "pip install 'llmaas[demo]'"
_COLOURS = {CELLS: "#2a9d4a", POOL: "#1f7fb4", DISK: "#9b3fb5", RECOMPUTED: "#e08a1e"}
_PREFILL = "#c03028"
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
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.suptitle(title)
    _draw_switches(above, findings)
    _draw_memory(below, samples, bound)
    figure.savefig(path, dpi=110)


def _draw_switches(axes: Axes, findings: DemoFindings) -> None:
    again = [p for p in findings.prefills if p.again]
    first = [p for p in findings.prefills if not p.again]
    _draw_prefills(axes, first, "none", "history computed the first time")
    _draw_prefills(axes, again, _PREFILL, "same context computed again")
    axes.axhline(p50([p.ms for p in again]), color=_PREFILL, linestyle="--", linewidth=1)
    for source, colour in _COLOURS.items():
        turns = [turn for turn in findings.turns if turn.source == source]
        alone = [turn for turn in turns if turn.part != TOGETHER]
        together = [turn for turn in turns if turn.part == TOGETHER]
        _draw_turns(axes, alone, colour, "o", f"switch from {source}")
        _draw_turns(axes, together, colour, "^", f"switch from {source}, all apps at once")
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds until the context can go on (log)")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_prefills(axes: Axes, prefills: Sequence[Prefill], face: str, label: str) -> None:
    at, ms = [p.at for p in prefills], [p.ms for p in prefills]
    axes.scatter(at, ms, marker="s", s=34, facecolor=face, edgecolor=_PREFILL, label=label)


def _draw_turns(axes: Axes, turns: Sequence[DemoTurn], colour: str, marker: str, label: str) -> None:
    if turns:
        at, ms = [turn.at for turn in turns], [max(turn.switch_ms, _LEAST_MS) for turn in turns]
        axes.scatter(at, ms, s=28, color=colour, marker=marker, label=label)


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

"""A picture of a trace: who is called when, how far apart calls are, and how contexts grow.

Law: needs matplotlib; nothing else of llmaas.traces does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.errors import BadRequest
from llmaas.traces.call import TraceCall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NAMES = 30
"""Contexts with names at the axis; more could not be read."""


def draw(path: Path, calls: Sequence[TraceCall], title: str) -> None:
    """Write the picture: PNG, SVG or PDF, by the name of ``path``. Raises BadRequest."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise BadRequest("pictures need matplotlib", hint="pip install 'llmaas[demo]'") from None
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_plain(title), fontsize=10)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 2))
    _timeline(figure.add_subplot(grid[0, :]), calls)
    _gaps(figure.add_subplot(grid[1, 0]), calls)
    _growth(figure.add_subplot(grid[1, 1]), calls)
    try:
        figure.savefig(path, dpi=80)
    except ValueError as error:  # an unknown suffix
        raise BadRequest(f"cannot draw {path}: {error}", hint="Name it .png, .svg or .pdf.") from error


def _timeline(axes: Axes, calls: Sequence[TraceCall]) -> None:
    """A dot for each call, as large as its prompt, in a row for each app."""
    apps = {app: i for i, app in enumerate(dict.fromkeys(call.app for call in calls))}
    hours = [call.t / 3600 for call in calls]
    rows = [apps[call.app] for call in calls]
    sizes = [4 + call.prompt / 20 for call in calls]
    axes.scatter(hours, rows, s=sizes, alpha=0.5, linewidths=0)
    if len(apps) <= _MOST_NAMES:
        axes.set_yticks(range(len(apps)), list(map(_plain, apps)), fontsize=7)
    axes.set(xlabel="hours", ylabel="" if len(apps) <= _MOST_NAMES else "app")
    axes.set_title("calls, as large as their prompts", fontsize=8)


def _plain(text: str) -> str:
    """Without a meaning as a formula."""
    return text.replace("$", r"\$")


def _gaps(axes: Axes, calls: Sequence[TraceCall]) -> None:
    gaps = sorted(b.t - a.t for a, b in pairwise(calls))
    axes.plot([max(gap, 0.01) for gap in gaps], [(i + 1) / len(gaps) for i in range(len(gaps))])
    axes.set(xscale="log", xlabel="seconds from a call to the next", ylabel="part of calls", ylim=(0, 1))


def _growth(axes: Axes, calls: Sequence[TraceCall]) -> None:
    lengths: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0])
    for call in calls:
        grown = lengths[call.app, call.context]
        grown.append(grown[-1] + call.prompt + call.generate)
    for grown in list(lengths.values())[:200]:
        axes.plot(range(len(grown)), grown, linewidth=0.7, alpha=0.6)
    axes.set(xlabel="calls of a context", ylabel="its tokens")

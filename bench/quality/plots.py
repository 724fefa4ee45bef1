"""Plots of bench.quality's JSON lines: ``python -m bench.quality.plots results.jsonl --to plots/``.

For each model the last line is drawn. quality.png shows KLD against true bits per value, with a panel for each model;
the grey line is the KLD at 8/8 bits. quality_tasks.png shows the share of tokens and of next actions that are the same
as over exact KV.
Needs matplotlib (``pip install llmaas[demo]``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.plots import arguments, save

STYLES: dict[str, dict[str, Any]] = {
    "uniform": {"color": "C0", "marker": "o", "linestyle": "none"},
    "tolerance": {"color": "C1", "marker": "o", "linestyle": "-"},
    "llms": {"color": "C3", "marker": "s", "linestyle": "--"},
    "llama.cpp": {"color": "0.4", "marker": "^", "linestyle": "none"},
}
_TASKS = (("top-1 agreement on text", "top1", None), ("next action as before", "action", "same"))
Row = dict[str, Any]


def quality(figures: Row, axes: Axes) -> None:
    """KLD against true bits, a line or points for each family; points are named by their bits for K and V."""
    for family, style in STYLES.items():
        rows = sorted(_family(figures, family), key=lambda row: row["bits"])
        axes.plot([row["bits"] for row in rows], [row["kld"] for row in rows], label=family, **style)
        if style["linestyle"] == "none":
            for row in rows:
                name = row["setting"].removeprefix("uniform ")
                axes.annotate(name, (row["bits"], row["kld"]), (4, 4), textcoords="offset points", fontsize=7)
    floor = next(row["kld"] for row in figures["settings"] if row["setting"] == "uniform 8/8")
    axes.axhline(floor, color="0.7", linewidth=0.8, zorder=0)
    axes.set(yscale="log", xlabel="true bits per value", ylabel="mean KLD, nats")


def tasks(figures: Row, axes: Axes) -> None:
    """Shares of tokens and of whole actions that are the same as over exact KV, against true bits."""
    for line, (label, name, part) in zip(("-", "--"), _TASKS, strict=True):
        for family in ("uniform", "tolerance", "llms"):
            rows = [row for row in _family(figures, family) if name in row]
            rows.sort(key=lambda row: row["bits"])
            shares = [row[name][part] if part else row[name] for row in rows]
            bits = [row["bits"] for row in rows]
            about = f"{label} (of {rows[0][name]['n']})" if part and rows else label
            axes.plot(bits, shares, line, color=STYLES[family]["color"], marker=".", label=f"{about}, {family}")
    axes.set(xlabel="true bits per value", ylabel="share", ylim=(None, 1.01))


PLOTS: dict[str, Callable[[Row, Axes], None]] = {"quality": quality, "quality_tasks": tasks}


def _family(figures: Row, family: str) -> list[Row]:
    return [row for row in figures["settings"] if row["family"] == family]


def draw(lines: Sequence[Row], show: Callable[[Row, Axes], None], path: Path) -> None:
    """One panel for each line, side by side."""
    figure, panels = pyplot.subplots(1, len(lines), figsize=(6 * len(lines), 5), layout="constrained", squeeze=False)
    for line, axes in zip(lines, panels[0], strict=True):
        show(line["figures"], axes)
        axes.set_title(line["model"])
    panels[0][0].legend(frameon=False, fontsize=8)
    sizes, last = lines[-1]["figures"]["sizes"], lines[-1]
    foot = f"{sizes['coded']} coded tokens, {sizes['scored']} scored; commit {last['commit']}, {last['time']}"
    save(figure, foot, path)


def main() -> int:
    lines, folder = arguments(__doc__)
    latest = {line["model"]: line for line in lines if line["bench"] == "quality"}
    if not latest:
        print("no line of bench.quality in these files", file=sys.stderr)
        return 2
    for name, show in PLOTS.items():
        draw(list(latest.values()), show, folder / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

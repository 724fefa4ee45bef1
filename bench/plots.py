"""Plots of the benches' JSON lines: ``python -m bench.plots results.jsonl --to plots/``.

For each bench the last line in the files is drawn: switch.png (time against context length), overhead.png (speed of
each way), policies.png (what is read from DISK), quantum.png (speed against the quantum), urgent.png (times to the
first token), crossover.png (recomputing against reading), host_impact.png (what another process loses) and busy.png
(speed beside busy processes). Needs matplotlib (``pip install llmaas[demo]``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend: there may be no display
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def switch(line: dict[str, Any], axes: Axes) -> None:
    figures = line["figures"].get("models", [line["figures"]])[0]
    lengths = [floor["tokens"] for floor in figures["floors"]]
    for name, label in (
        ("reprefill_ms", "re-prefill"),
        ("load_ms", "ready f16 into cells"),
        ("copy_ms", "copy of the f16 bytes"),
    ):
        axes.plot(lengths, [floor[name] for floor in figures["floors"]], "k", marker=".", alpha=0.6)
        axes.annotate(
            label, (lengths[-1], figures["floors"][-1][name]), (4, 0), textcoords="offset points", va="center"
        )
    for run in figures["runs"]:
        for tier, cold, style in (("POOL", False, "-"), ("DISK", True, "--")):
            rows = [row for row in run["switches"] if row["tier"] == tier and row.get("cold", False) == cold]
            rows = [row for row in rows if not row.get("bytes_per_s")]  # on the disk as it is
            label = f"{tier}{' (cold file)' if cold else ''}, {run['bits']} bits"
            times = [row["switch_ms"]["median"] for row in rows]
            axes.plot([row["tokens"] for row in rows], times, style, marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens of the context", ylabel="milliseconds, median")
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.set_xlim(right=lengths[-1] * 2.4)
    axes.minorticks_off()
    axes.set_title("Bringing a context back into the engine")
    axes.legend(frameon=False)


def overhead(line: dict[str, Any], axes: Axes) -> None:
    ways = ("bare", "service", "socket")
    names = [f"{what}\n{way}" for what in ("prefill", "decode") for way in ways]
    found = [line["figures"][f"{what}_{way}_tps"] for what in ("prefill", "decode") for way in ways]
    medians = [one["median"] for one in found]
    spread = [[one["median"] - one["p10"] for one in found], [one["p90"] - one["median"] for one in found]]
    axes.bar(names, medians, yerr=spread, color=["0.6", "C0", "C1"] * 2, capsize=3)
    axes.set(yscale="log", ylabel="tokens per second, median (p10 to p90)")
    axes.set_title("One client through the service, and a bare llama.cpp loop")


def policies(line: dict[str, Any], axes: Axes) -> None:
    summary = line["figures"]["summary"]
    patterns = [name.removeprefix("disk_") for name in summary["lru"] if name.startswith("disk_")]
    shown = [policy for policy in summary if policy != "unbounded"]  # which reads nothing from DISK
    for i, policy in enumerate(shown):
        at = [x + (i - len(shown) / 2) * 0.2 for x in range(len(patterns))]
        axes.bar(at, [summary[policy].get(f"disk_{p}", 0.0) for p in patterns], 0.2, label=policy)
    axes.set_xticks(range(len(patterns)), patterns)
    axes.set(ylabel="tokens from DISK, relative to lru")
    axes.set_title("What the POOL misses, by switching pattern (replays)")
    axes.legend(frameon=False)


def host_impact(line: dict[str, Any], axes: Axes) -> None:
    cases = {name: found for name, found in line["figures"]["cases"].items() if name != "idle"}
    shown = [
        f"{name.replace('_', ' ')}\n{found['tokens_per_s']['median']:.3g} tokens/s" for name, found in cases.items()
    ]
    axes.bar(shown, [100 * found["impact"] for found in cases.values()], color="C0")
    axes.tick_params("x", labelsize=7)
    axes.set(ylabel="% of its throughput, median over rounds")
    axes.set_title("What SHA-256 on every core loses while llmaas generates")


def quantum(line: dict[str, Any], axes: Axes) -> None:
    figures = line["figures"]
    clients, theirs = figures["clients"], figures["llm_os"]
    for fitting, mark in ((1, "o"), (4, "s")):
        rows = [row for row in figures["rows"] if row["fitting"] == fitting]
        shares = [row["share"] for row in rows]
        (drawn,) = axes.plot([row["quantum"] for row in rows], shares, marker=mark, label=f"{fitting} of {clients} fit")
        for row in rows:
            wait = f"{row['longest_wait_s']:.2g} s"
            at = (row["quantum"], row["share"])
            axes.annotate(wait, at, (0, 6), textcoords="offset points", fontsize=7, color=drawn.get_color())
    for name, style in (("gpu", "--"), ("cpu", ":")):
        shares = [tps / theirs[name]["single"] for tps in theirs[name]["tps"]]
        axes.plot(theirs["quantum"], shares, f"k{style}", marker=".", alpha=0.6, label=f"LLM-OS, {name.upper()}")
    axes.set(ylim=(0, 1.1), xlabel="tokens of a turn", ylabel="speed, relative to not taking turns")
    axes.set_title(f"{clients} clients taking turns (and the wait from turn to turn)")
    axes.legend(frameon=False)


def urgent(line: dict[str, Any], axes: Axes) -> None:
    figures = line["figures"]
    ways = ("idle", "urgent", "equal")
    for i, row in enumerate(figures["prompts"]):
        found = [row[way]["ttft_ms"] for way in ways]
        medians = [one["median"] for one in found]
        spread = [[one["median"] - one["p10"] for one in found], [one["p90"] - one["median"] for one in found]]
        at = [x + (i - (len(figures["prompts"]) - 1) / 2) * 0.35 for x in range(len(ways))]
        axes.bar(at, medians, 0.35, yerr=spread, capsize=3, label=f"prompt of {row['prompt_tokens']} tokens")
        for x, one in zip(at, medians, strict=True):
            axes.annotate(f"{one:.0f}", (x, one), (3, 3), textcoords="offset points", fontsize=8)
    axes.set_xticks(range(len(ways)), ["idle daemon", "priority 0\namong 8", "priority 5\namong 5"])
    axes.set(yscale="log", ylabel="milliseconds to the first token, median (p10 to p90)")
    busy = f"{figures['prefill_tokens']} tokens are prefilled and {figures['decodes']} clients answer"
    axes.set_title(f"A request while {busy}")
    axes.legend(frameon=False)


def crossover(line: dict[str, Any], axes: Axes) -> None:
    figures = line["figures"]
    rows = figures["disks"][0]["rows"]
    lengths = [row["tokens"] for row in rows]
    axes.plot(lengths, [row["compute_ms"] for row in rows], "k", marker="o", label="computed")
    axes.plot(lengths, [row["pool_ms"] for row in rows], "0.5", marker="o", label="from POOL")
    for i, disk in enumerate(figures["disks"]):
        name = f"disk of {disk['bytes_per_s'] / 1e6:.1f} MB/s" if disk["bytes_per_s"] else "disk, cold"
        for what, style, label in (("read_ms", "--", f"{name}, read"), ("chosen_ms", "-", f"{name}, as chosen")):
            axes.plot(lengths, [row[what] for row in disk["rows"]], f"C{i}{style}", marker=".", label=label)
    theirs = figures["llm_os"]
    for what, label in (("recompute_ms", "computed"), ("load_ms", "read")):
        axes.plot(theirs["tokens"], theirs[what], "x", color="0.6", label=f"LLM-OS on an A40, {label}")
    axes.set(xscale="log", yscale="log", xlabel="tokens of the context", ylabel="milliseconds, median")
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.minorticks_off()
    axes.set_title("Bringing a context back: recompute or read")
    axes.legend(frameon=False, fontsize=7)


def busy(line: dict[str, Any], axes: Axes) -> None:
    models = line["figures"]["models"]
    styles = {"llmaas": "-", "llama_server": "--", "fair_share": ":"}
    for i, (model, found) in enumerate(models.items()):
        rows = found["places"]
        for j, what in enumerate(("prefill", "decode")):
            for way, style in styles.items():
                if f"{way}_tps" not in rows[0][what]:
                    continue
                speeds = [row[what][f"{way}_tps"]["median"] for row in rows]
                label = f"{model}, {what}: {way.replace('_', ' ')}"
                axes.plot([row["busy"] for row in rows], speeds, f"C{2 * i + j}{style}", marker=".", label=label)
    axes.set(yscale="log", xlabel="busy processes beside", ylabel="tokens per second, median")
    axes.set_xticks([row["busy"] for row in rows])
    axes.set_title("Speed beside busy processes (fair share: of one thread)")
    axes.legend(frameon=False, fontsize=6)


PLOTS: dict[str, Callable[[dict[str, Any], Axes], None]] = {
    "switch": switch,
    "overhead": overhead,
    "policies": policies,
    "host_impact": host_impact,
    "quantum": quantum,
    "urgent": urgent,
    "crossover": crossover,
    "busy": busy,
}


def arguments(about: str | None) -> tuple[list[dict[str, Any]], Path]:
    """From the command line: the lines of all files named, and the folder for plots, which is created."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="files that the benches' --out made")
    parser.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="where the plots go (default: here)")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    return [json.loads(text) for file in args.files for text in file.read_text("utf-8").splitlines() if text], args.to


def save(figure: Figure, foot: str, path: Path) -> None:
    """Write ``figure`` to ``path``, with ``foot`` below it."""
    figure.supxlabel(foot, fontsize=7, color="0.4")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    print(path)


def main() -> int:
    lines, folder = arguments(__doc__)
    latest = {line["bench"]: line for line in lines}
    for bench, draw in PLOTS.items():
        if bench not in latest:
            continue
        line = latest[bench]
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        draw(line, axes)
        machine = line["machine"]
        foot = f"{line['model']}; {machine['cpu']}, {machine['cores']} cores; commit {line['commit']}, {line['time']}"
        save(figure, foot, folder / f"{bench}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

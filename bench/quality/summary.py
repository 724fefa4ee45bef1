"""From scores to figures, the table, and the bars.

Law: pure. A mean over tokens is taken within a context first, then over contexts, so that longer contexts do not count
for more; p99 is over the tokens of all contexts, since one context has too few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import exp
from statistics import fmean
from typing import Any

import numpy as np

from bench.lib.cli import Bar
from bench.lib.stats import sig
from bench.quality.lab import Score

Row = dict[str, Any]


def summaries(scores: Sequence[Score], families: Mapping[str, str]) -> list[Row]:
    """A row for each setting, in the order of ``families`` (setting -> family)."""
    exact = {_who(score): score for score in scores if score.setting == "exact" and score.task == "text"}
    by_setting: dict[str, list[Score]] = {name: [] for name in families}
    for score in scores:
        by_setting.setdefault(score.setting, []).append(score)
    return [_row(name, family, by_setting[name], exact) for name, family in families.items()]


def _row(setting: str, family: str, scores: Sequence[Score], exact: Mapping[tuple[str, str], Score]) -> Row:
    text = [score for score in scores if score.task == "text"]
    kinds: dict[str, list[Score]] = {}
    for score in text:
        kinds.setdefault(score.kind, []).append(score)
    row: Row = {"setting": setting, "family": family} | _text(text, exact)
    row["kinds"] = {kind: _text(some, exact) for kind, some in kinds.items()}
    row["contexts"] = {score.case: sig(_mean(score.kld)) for score in text}
    for task in ("needle", "action"):
        asked = [score for score in scores if score.task == task]
        if asked:
            row[task] = _answers(asked)
    return row


def _who(score: Score) -> tuple[str, str]:
    return score.case, score.task


def _mean(values: np.ndarray[Any, Any]) -> float:
    return float(values.mean())


def _text(scores: Sequence[Score], exact: Mapping[tuple[str, str], Score]) -> Row:
    """Figures over text. ``ppl`` is perplexity, ``ppl_pct`` by how many percent it is above that over exact KV."""
    nll = fmean(_mean(score.nll) for score in scores)
    before = fmean(_mean(exact[_who(score)].nll) for score in scores)
    return {
        "bits": sig(fmean(score.bits for score in scores)),
        "kld": sig(fmean(_mean(score.kld) for score in scores)),
        "kld_p99": sig(float(np.percentile(np.concatenate([score.kld for score in scores]), 99))),
        "top1": sig(fmean(_mean(score.same) for score in scores)),
        "ppl": sig(exp(nll)),
        "ppl_pct": sig(100 * (exp(nll - before) - 1)),
    }


def _answers(scores: Sequence[Score]) -> Row:
    """Figures of answers. ``same``, ``right``: the share whose greedy tokens are all those over exact KV, or those of
    the label. ``logprob``: mean log-probability of the label, nats.
    """
    return {
        "n": len(scores),
        "same": sig(fmean(bool(score.same.all()) for score in scores)),
        "right": sig(fmean(bool(score.right.all()) for score in scores)),
        "logprob": sig(-fmean(float(score.nll.sum()) for score in scores)),
    }


# -- the table --------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, Callable[[Row], Any]], ...] = (
    ("setting", lambda row: row["setting"]),
    ("bits", lambda row: f"{row['bits']:.2f}"),
    ("KLD", lambda row: f"{row['kld']:.4f}"),
    ("p99", lambda row: f"{row['kld_p99']:.3f}"),
    ("top-1", lambda row: f"{row['top1']:.1%}"),
    ("ppl", lambda row: f"{row['ppl_pct']:+.2f}%"),
    ("needle", lambda row: _share(row, "needle", "right")),
    ("action right", lambda row: _share(row, "action", "right")),
    ("action same", lambda row: _share(row, "action", "same")),
)


def _share(row: Row, task: str, what: str) -> str:
    return f"{row[task][what]:.0%}" if task in row else "-"


def table(figures: Row) -> Iterator[str]:
    """Lines of Markdown: a row for each setting, with the KLD of each kind, then the drift."""
    rows = figures["settings"]
    kinds = list(rows[0]["kinds"])
    yield "| " + " | ".join([*(title for title, _ in _COLUMNS), *(f"KLD {kind}" for kind in kinds)]) + " |"
    yield "|" + "---|" * (len(_COLUMNS) + len(kinds))
    for row in rows:
        cells = [str(show(row)) for _, show in _COLUMNS] + [f"{row['kinds'][kind]['kld']:.4f}" for kind in kinds]
        yield "| " + " | ".join(cells) + " |"
    for row in figures["drift"]:
        yield (
            f"{row['k']}/{row['v']} bits, KLD after {row['rounds']} swaps {row['kld_rounds']:.4f}, after one "
            f"{row['kld_once']:.4f}: {row['ratio']:.2f} times; first chunks {'intact' if row['intact'] else 'CHANGED'}"
        )


# -- the bars ---------------------------------------------------------------------------------------


def bars(figures: Row, *, per_kind: bool) -> list[Bar]:
    """``per_kind``: no kind of context may get worse for the others (one context of each kind could not show that)."""
    rows = figures["settings"]
    named = {row["setting"]: row for row in rows}
    floor = named["uniform 8/8"]["kld"]
    found = []
    for limit, most in ((4.5, 2.0), (3.5, 4.0)):
        best = _least([row for row in rows if row["family"] in ("uniform", "tolerance") and row["bits"] <= limit])
        found.append(
            Bar(f"KLD at {limit} bits ({best['setting']}), times that at 8/8", best["kld"] / floor, most, True)
        )
    for budget, most in ((3.0, 0.7), (3.5, 0.9), (4.0, 0.9)):
        mine = named[f"tolerance {budget}"]
        other = _least([row for row in rows if row["family"] == "uniform" and row["bits"] <= mine["bits"] + 0.005])
        what = f"KLD of {mine['setting']}, times that of {other['setting']}"
        found.append(Bar(what, mine["kld"] / other["kld"], most, True))
        if per_kind:
            worst = max(mine["kinds"], key=lambda kind: _times(mine, other, kind))
            found.append(Bar(f"{what}, {worst}", _times(mine, other, worst), 1.1, True))
    for other in (row for row in rows if row["family"] == "llms"):
        mine = named[f"tolerance like {other['setting']}"]
        found.append(Bar(f"KLD of {other['setting']}, times that of {mine['setting']}", other["kld"] / mine["kld"], 5))
    for row in figures["drift"]:
        what = f"KLD after {row['rounds']} swaps, times that after one ({row['k']}/{row['v']} bits)"
        found.append(Bar(what, row["ratio"], 1.25, True))
        found.append(Bar(f"first chunks as they were ({row['k']}/{row['v']} bits)", float(row["intact"]), 1))
    return found


def _least(rows: Sequence[Row]) -> Row:
    return min(rows, key=lambda row: row["kld"])


def _times(mine: Row, other: Row, kind: str) -> float:
    return float(mine["kinds"][kind]["kld"] / other["kinds"][kind]["kld"])

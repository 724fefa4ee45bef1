"""How much the model's answers change when the KV of a context is coded.

A context is computed, and its chunks are coded and brought back as the service does it. Then the tokens that follow are
fed to the model over exact and over coded KV. Compared are the distributions of each next token (KLD, nats; top-1
agreement; perplexity), facts hidden in documents, next actions on screens, and a conversation swapped 20 times.

The settings are: every chunk at the same precision (uniform), bits by measured sensitivity ("tolerance"), bits by
attention density as in LLMS (arXiv 2403.11805), and llama.cpp's own quantised caches. Bits are true bits per value: all
stored bytes count.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

# Before numpy is imported: its own threads would spin against llama.cpp's, and each would wait for the other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.lib.cli import Options, Result, main, say
from bench.lib.stats import sig
from bench.quality.contexts import KINDS, Case, Sizes, cases, from_file, needles, own
from bench.quality.drift import Drift, drift
from bench.quality.engine import CACHES, ScoringEngine
from bench.quality.lab import Lab, Score, as_row, from_row
from bench.quality.settings import Setting, settings
from bench.quality.summary import bars, summaries, table
from llmaas.engine.llama.context import KvType
from llmaas.records import Precision

QUICK = Sizes(coded=512, scored=96, per_kind=1, asked=2)
FULL = Sizes(coded=1024, scored=192, per_kind=3, asked=6)
_DRIFT_START, _DRIFT_ROUNDS = 256, 20
_DRIFT_PRECISIONS = (Precision(4, 4), Precision(3, 3))
_CACHES_QUICK: tuple[KvType, ...] = ("q4_0",)


def measure(options: Options, file: Path | None, sizes: Sizes) -> Result:
    scores: list[Score] = []
    wanted = settings(options.quick)
    caches = _CACHES_QUICK if options.quick else tuple(CACHES)
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(_engine(options, sizes, cache))) for cache in ("f16", *caches)]
        lab = Lab(engines[0], dict(zip(caches, engines[1:], strict=True)))
        dialogues = from_file(file) if file else own(lab.engine, sizes, options.seed)
        found = [*cases(lab.engine, dialogues, sizes), *needles(lab.engine, sizes, options.seed)]
        if not any(probe.task == "text" for case in found for probe in case.probes):
            raise SystemExit(f"no context has {sizes.coded + sizes.scored} tokens: give --tokens, or other contexts")
        drifting = drifting_cases(found, options.quick)
        options.kept.expect(len(found) + len(drifting) * len(_precisions(options.quick)))
        for case in found:
            say(f"{case.kind}: {case.name}, {len(case.probes)} probes")
            rows = options.step(case.name, lambda case=case: [as_row(score) for score in lab.study(case, wanted)])  # type: ignore[misc]
            scores += map(from_row, rows)
        drifts = _drifts(lab, drifting, options)
        model = lab.engine.info.name
    figures: dict[str, Any] = {
        "source": file.name if file else "own",
        "sizes": dataclasses.asdict(sizes),
        "cases": {case.name: case.kind for case in found},
        "settings": summaries(scores, _families(wanted, caches)),
        "drift": drifts,
    }
    for line in table(figures):
        say(line)
    return Result(model, figures, bars(figures, per_kind=not options.quick))


def _engine(options: Options, sizes: Sizes, cache: KvType) -> ScoringEngine:
    cells = 2 * (sizes.coded + sizes.scored)  # the scored part is a text, or a question with its answer
    return ScoringEngine(options.model, n_cells=cells, n_threads=options.threads, cache=cache)


def _families(wanted: Sequence[Setting], caches: Sequence[str]) -> dict[str, str]:
    return {"exact": "exact"} | {one.name: one.family for one in wanted} | dict.fromkeys(caches, "llama.cpp")


def drifting_cases(found: Sequence[Case], quick: bool) -> list[Case]:
    """Those that are swapped many times: the first chat and the first task dialogue; with ``quick`` the chat alone.
    Where the contexts are of other kinds, the first of one or two of theirs; needles, which are not talks, last."""
    wanted = ("chat", "task_dialogue", *(kind for kind in KINDS if kind not in ("chat", "task_dialogue")), "needle")
    firsts = [next((case for case in found if case.kind == kind), None) for kind in wanted]
    return [case for case in firsts if case is not None][: 1 if quick else 2]


def _precisions(quick: bool) -> Sequence[Precision]:
    return _DRIFT_PRECISIONS[: 1 if quick else None]


def _drifts(lab: Lab, chosen: Sequence[Case], options: Options) -> list[dict[str, Any]]:
    """A row for each precision; none if there is no context."""
    rows = []
    for precision in _precisions(options.quick) if chosen else ():
        runs = [
            Drift(
                **options.step(f"drift {case.name} {precision.k}/{precision.v}", partial(_drift, lab, case, precision))
            )
            for case in chosen
        ]
        once, many = fmean(run.once for run in runs), fmean(run.many for run in runs)
        rows.append(
            {
                "k": precision.k,
                "v": precision.v,
                "rounds": _DRIFT_ROUNDS,
                "kld_once": sig(once),
                "kld_rounds": sig(many),
                "ratio": sig(many / once),
                "intact": all(run.intact for run in runs),
            }
        )
    return rows


def _drift(lab: Lab, case: Case, precision: Precision) -> dict[str, Any]:
    say(f"drift: {case.name}, {_DRIFT_ROUNDS} rounds at {precision.k}/{precision.v} bits")
    probe = case.probes[0]
    tokens = (*case.tokens[: probe.coded], *probe.fed)
    found = drift(lab, tokens, precision, start=_DRIFT_START, rounds=_DRIFT_ROUNDS, scored=len(probe.fed))
    return dataclasses.asdict(found)


def _own_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument("--contexts", type=Path, metavar="FILE", help="JSON lines (.gz) of contexts; default: own ones")
    parser.add_argument("--contexts-per-kind", type=int, metavar="N", help="of the four kinds, and needle documents")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens that are coded, a multiple of 64")
    parser.add_argument("--scored", type=int, metavar="N", help="tokens after them that are compared")
    return parser


def _sizes(given: argparse.Namespace, quick: bool) -> Sizes:
    base = QUICK if quick else FULL
    return Sizes(
        coded=given.tokens or base.coded,
        scored=given.scored or base.scored,
        per_kind=given.contexts_per_kind or base.per_kind,
        asked=base.asked,
    )


if __name__ == "__main__":
    parser = _own_options()
    given, sys.argv[1:] = parser.parse_known_args()  # what is left are the options of all benches
    about = f"{__doc__}\nOptions of this bench:\n{parser.format_help()}"
    sys.exit(main("quality", about, lambda options: measure(options, given.contexts, _sizes(given, options.quick))))

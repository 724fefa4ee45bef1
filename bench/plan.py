"""How far ``llmaas plan`` is from what then happens: predictions of switches, held against a real daemon.

A daemon answers calls of one pattern and ends; what it has learned of the machine is all that the prediction is given.
Then other traces, of other texts, are run by a daemon on the real model, through its socket, and by the planner in
virtual time with the same cells, pool and bits. Calls of another context than the one before are compared.

Virtual time knows the bytes of chunks and the tokens to compute, and how long these took before. It does not know other
processes, how compressible the texts are, and the time from the daemon to the app and back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.engine import engine
from bench.lib.stats import sig
from bench.replay import Plan, budget_of
from bench.replaying.figures import times
from bench.replaying.journal import Journal, Row
from bench.replaying.made import made
from bench.replaying.progress import Progress
from bench.replaying.run import Run
from bench.replaying.systems import SYSTEMS, Budget
from bench.replaying.work import Work, work_of
from llmaas.engine.base import Engine
from llmaas.planner.settings import PlannerChoices, PlannerSettings, planner_settings
from llmaas.records import Geometry
from llmaas.replay.prices import DEVICES, MACHINES, Costs, learned_prices, priced
from llmaas.replay.report import CallReport
from llmaas.replay.simulator import Replay
from llmaas.service import costs_file
from llmaas.traces import conversations
from llmaas.traces.call import TraceCall

SYSTEM = SYSTEMS["llmaas"]
PATTERNS = ("markov", "random", "phone")
LEARNT_FROM = "random"
_SHORT, _LEARN_SHORT = Plan(8, 24, 1024, ("llmaas",), restarts=0), Plan(12, 32, 1024, ("llmaas",), restarts=0)
_LONG, _LEARN_LONG = Plan(24, 120, 4096, ("llmaas",), restarts=0), Plan(12, 48, 4096, ("llmaas",), restarts=0)
"""What is predicted, and what is learned from: so many contexts that some are read from DISK alone and some from the
POOL alone, as long as those that are predicted. Only that tells what a load costs, and what each of its megabytes."""
_APART_S = 60.0
"""Virtual seconds between calls: what is to be saved and written has been by then, as in the pauses of the real one."""
_WITHIN = 1.25
_NOTHING_MS = 0.2
"""A switch that takes less was in CELLS already."""
_FIGURES = ("mean", "p50", "p90", "p99")


def work_for(plan: Plan, pattern: str, seed: int, engine: Engine) -> Work:
    texts = made(plan.contexts, plan.limit, seed)
    return work_of(list(conversations.make(texts, pattern, plan.calls, limit=plan.limit, seed=seed)), engine, seed)


def settings_for(budget: Budget, geometry: Geometry) -> PlannerSettings:
    """The planner's settings of the daemon that runs ``SYSTEM`` with this budget."""
    flags = SYSTEM.serve_flags(budget)
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    n_cells = int(given["--cells"])
    return planner_settings(
        PlannerChoices(pool_bytes=int(given["--pool-bytes"]), bits=float(given["--bits"]), disk_bytes=20 << 30),
        n_cells=n_cells,
        n_seqs=int(given["--sequences"]),
        ctx_limit=n_cells,
        geometry=geometry,
        max_batch=512,
    )


def predicted(work: Work, settings: PlannerSettings, costs: Costs) -> tuple[list[CallReport], int]:
    """What virtual time says of each call, and the bytes written."""
    trace = [
        TraceCall(_APART_S * i, call.app, call.context, len(call.tokens), call.n_new)
        for i, call in enumerate(work.calls)
    ]
    report = Replay(settings, costs).run(trace)
    assert not report.problems, report.problems
    return list(report.calls), report.tally.bytes_written


def compared(work: Work, rows: Sequence[Row], calls: Sequence[CallReport]) -> dict[str, Any]:
    """Milliseconds of the same calls, measured and predicted, and where their tokens were."""
    measured = {row["number"]: row for row in rows if row["row"] == "call"}
    numbers = [call.number for call in work.calls if call.switches and call.n_new and call.number in measured]
    real, told = [measured[n] for n in numbers], [calls[n] for n in numbers]
    return {
        "switch_ms": _both([row["switch_ms"] for row in real], [call.switch_s * 1e3 for call in told]),
        "ttft_ms": _both([row["ttft_ms"] for row in real], [call.ttft_s * 1e3 for call in told]),
        "from": {
            tier: [sig(sum(row["sources"][tier] for row in real)), sig(sum(call.sources[i] for call in told))]
            for i, tier in enumerate(("cells", "pool", "disk", "recomputed"))
        },
    }


def _both(real: Sequence[float], told: Sequence[float]) -> dict[str, list[float]]:
    a, b = times(real), times(told)
    return {} if a is None or b is None else {name: [a[name], b[name]] for name in _FIGURES} | {"n": [a["n"], b["n"]]}


def measured(options: Options, work: Work, budget: Budget, progress: Progress) -> list[Row]:
    """The rows of a real run, one of them what its daemon has learned."""
    journal = Journal(options.folder / "rows.jsonl")
    run = Run("run", SYSTEM, work, budget, options, journal, progress.advance)
    run.at_end = lambda folder: run.put("learned", text=(folder / "data.costs.json").read_text("utf-8"))
    run.carry_out({"system": SYSTEM.name})
    return journal.runs()["run"]


def learned_of(rows: Sequence[Row], folder: Path) -> costs_file.MeasuredCosts:
    path = folder / "learned.json"
    path.write_text(next(row["text"] for row in rows if row["row"] == "learned"), "utf-8")
    return costs_file.read(path)


def measure(options: Options) -> Result:
    plan, learn = (_SHORT, _LEARN_SHORT) if options.quick else (_LONG, _LEARN_LONG)
    with engine(options, 256) as thread:  # for its tokenizer, and the model's geometry
        info = thread.engine.info
        learning = work_for(learn, LEARNT_FROM, options.seed + 1, thread.engine)
        works = {pattern: work_for(plan, pattern, options.seed, thread.engine) for pattern in _patterns(options)}
    token_bytes = info.geometry.token_bytes
    progress = Progress(sum(len(work.calls) for work in (learning, *works.values())))

    def rows_of(name: str, work: Work, budget: Budget) -> list[Row]:
        progress.what = name
        return options.step(name, lambda: measured(options, work, budget, progress))

    rows = rows_of("learn", learning, budget_of(learning, token_bytes, plan.memory))
    learned = learned_of(rows, options.folder)
    costs = learned_prices(learned.costs, priced(DEVICES["nvme"], MACHINES["pc"], 1.0))
    figures: dict[str, Any] = {"learned": asdict(learned.costs), "traces": {}}
    bars: list[Bar] = []
    for pattern, work in works.items():
        budget = budget_of(work, token_bytes, plan.memory)
        rows = rows_of(pattern, work, budget)
        calls, written = predicted(work, settings_for(budget, info.geometry), costs)
        found = compared(work, rows, calls)
        end = next(row for row in rows if row["row"] == "end")
        figures["traces"][pattern] = found | {"written": [end["whole"]["written_bytes"], written]}
        for line in _lines(pattern, found):
            say(line)
        bars += _bars(pattern, found)
    return Result(info.title, figures, bars)


def _patterns(options: Options) -> Sequence[str]:
    return PATTERNS[:2] if options.quick else PATTERNS


def _bars(pattern: str, found: dict[str, Any]) -> Iterator[Bar]:
    real, told = (max(ms, _NOTHING_MS) for ms in found["switch_ms"]["p50"])
    far = max(real, told) / min(real, told)
    yield Bar(f"{pattern}: p50 of switches, predicted or measured, larger / smaller", sig(far), _WITHIN, True)


def _lines(pattern: str, found: dict[str, Any]) -> Iterator[str]:
    for what in ("switch_ms", "ttft_ms"):
        pairs = ", ".join(f"{name} {found[what][name][0]:g} ({found[what][name][1]:g})" for name in _FIGURES)
        yield f"{pattern}: {what}, measured (predicted): {pairs}"


if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem, (__doc__ or "").strip(), measure))

"""A trace of real conversations on the real model, by the service and by other programs: how long a user waits.

Each app is a process of its own and calls through the program's own interface: the service's socket, or a server's
HTTP. All contexts are made first, then called in the trace's order, one call after the other; the pauses between
calls are the trace's, shortened. Every program gets the same model file, threads, texts, greedy answers of the same
length, and for contexts the same bytes of RAM: a part (``--memory``) of what all contexts would take as f16. Its
files leave the page cache before each call, because that is RAM, too.

Reported are the time to the first token (TTFT) of calls of another context than the one before, its parts where the
program tells them (bringing the context back; computing the new turn), the same after the program was started again,
memory over time, bytes read and written, CPU seconds, and energy where RAPL can be read.

Rows are appended to ``--rows`` as they come. A run that is whole there is not made again: an interrupted bench goes on
where it was, and runs of several days can be compared. ``--html`` writes the report of all runs of this work.

llama-server comes from the package xllamacpp (BENCH_XLLAMACPP names a Python that has it), or was built here
(BENCH_LLAMA_SERVER names the program), llama_cpp.server from 'llama-cpp-python[server]' (BENCH_LLAMA_CPP_SERVER),
hearth from hearth-llm (BENCH_HEARTH). Programs that are not there are left out, and named in the result.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.lib.cli import Bar, Options, Result, command_of, main, say
from bench.lib.engine import engine
from bench.lib.machine import ROOT, commit, machine
from bench.replaying.bars import answers_bar, bars, missing
from bench.replaying.figures import over_repeats, ratio, same_answers, summary
from bench.replaying.journal import Journal, Row
from bench.replaying.made import made
from bench.replaying.page import page
from bench.replaying.programs import NotInstalled
from bench.replaying.progress import Progress
from bench.replaying.run import Run
from bench.replaying.systems import DEFAULT, EXACT, SYSTEMS, Budget
from bench.replaying.work import STREAM_ANSWER, STREAM_PROMPT, Work, shortened, with_shared_beginning, work_of
from llmaas.traces import conversations
from llmaas.traces.call import TraceCall
from llmaas.traces.conversations import ConversationText
from llmaas.traces.files import load, text_of
from llmaas.traces.switching import PATTERNS

ROOM = 64
"""Tokens beyond the longest context that cells have."""
_GROWTH = 4
"""A conversation is chosen if it leaves this part of the longest context to grow."""
_KEY_FIGURES = ("ttft_ms.p50", "ttft_ms.p99", "switch_ms.p50", "switch_ms.p99", "ttft_restart_ms.p50")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is replayed, and on what. ``limit``: tokens of a context at most. ``shared``: tokens of a text with which
    all contexts begin. ``one_app``: all contexts are of one app, so that the service may share their chunks.
    """

    contexts: int
    calls: int
    limit: int
    systems: Sequence[str]
    patterns: Sequence[str] = ("markov",)
    restarts: int = 8
    repeats: int = 1
    memory: float = 0.25
    cold: bool = True
    disk_rate: int = 0
    beside: int = 6
    shared: int = 0
    one_app: bool = False


QUICK = Plan(6, 10, 640, ("llmaas", "kill", "llama-server"), restarts=2, beside=3)
FULL = Plan(30, 100, 4096, DEFAULT)


def trace_of(plan: Plan, given: argparse.Namespace, pattern: str, seed: int) -> list[TraceCall]:
    """The trace: a file's, or conversations, those of a file or of pieces of the Python manual."""
    if given.trace:
        return list(shortened(load(given.trace), plan.contexts, plan.calls))
    texts = _read(given.contexts, plan) if given.contexts else made(plan.contexts, plan.limit, seed)
    calls = conversations.make(texts, pattern, plan.calls, limit=plan.limit, seed=seed)
    return list(with_shared_beginning(calls, plan.shared, one_app=plan.one_app))


def _read(path: Path, plan: Plan) -> list[ConversationText]:
    """As many conversations of the file as are wanted, from all over it, of those that leave room to grow."""
    with text_of(path) as file:
        found = conversations.read_conversations(file)
    fitting = [each for each in found if each.tokens(each.begin) <= plan.limit - plan.limit // _GROWTH]
    chosen = [fitting[i * len(fitting) // plan.contexts] for i in range(min(plan.contexts, len(fitting)))]
    return list(dict.fromkeys(chosen))


def budget_of(work: Work, token_bytes: int, part: float, *, beside: int = 0, restarts: int = 0) -> Budget:
    """``part`` of what all contexts take as f16 at the end; at least what the longest one takes, with the stream that
    is beside it in the end. ``beside``, ``restarts``: calls after the trace, as in ``Plan``."""
    stream = STREAM_PROMPT + 2 + STREAM_ANSWER if beside else 0
    longest = work.longest_then(beside, restarts) + stream + ROOM
    nbytes = max(int(part * work.total * token_bytes), longest * token_bytes)
    return Budget(nbytes, token_bytes, longest, work.total + (longest - work.longest) * len(work.contexts))


def run_name(work: Work, plan: Plan, options: Options, system: str, repeat: int) -> str:
    """Of a run, by all that decides what it measures but the machine and the code."""
    parts = [(call.app, call.context, call.text, call.n_new) for call in work.calls]
    conditions = plan.memory, plan.cold, plan.disk_rate, plan.restarts, plan.beside
    what = repr((parts, conditions, options.model.name, options.threads))
    return f"{hashlib.blake2b(what.encode(), digest_size=6).hexdigest()}/{system}/{repeat}"


class Replay:
    """All runs of one work."""

    def __init__(self, work: Work, budget: Budget, plan: Plan, options: Options, journal: Journal) -> None:
        self.work, self.budget, self.plan, self.options, self.journal = work, budget, plan, options, journal
        self.absent: dict[str, str] = {}
        """Programs that could not be run, and why."""

    def names(self, system: str) -> list[str]:
        return [run_name(self.work, self.plan, self.options, system, i) for i in range(self.plan.repeats)]

    def carry_out(self, progress: Progress, pattern: str) -> None:
        """What the journal lacks. Programs take turns, so that a machine that changes changes for all."""
        done = self.journal.runs()
        for repeat in range(self.plan.repeats):
            for system in self.plan.systems:
                name = run_name(self.work, self.plan, self.options, system, repeat)
                if name in done or system in self.absent:
                    progress.skip(len(self.work.calls))
                    continue
                progress.what = f"{pattern}, {system}, run {repeat + 1} of {self.plan.repeats}"
                try:
                    self._run(name, system, progress).carry_out(self._head(pattern, system, repeat))
                except NotInstalled as error:
                    say(str(error))
                    self.absent[system] = "not installed"
                except RuntimeError as error:
                    say(f"{system} failed: {error}")
                    self.absent[system] = str(error)[-300:]

    def _run(self, name: str, system: str, progress: Progress) -> Run:
        run = Run(name, SYSTEMS[system], self.work, self.budget, self.options, self.journal, progress.advance)
        run.disk_rate = self.plan.disk_rate
        run.cold, run.restarts, run.beside = self.plan.cold, self.plan.restarts, self.plan.beside
        return run

    def _head(self, pattern: str, system: str, repeat: int) -> dict[str, Any]:
        return {
            "system": system,
            "about": SYSTEMS[system].about,
            "pattern": pattern,
            "repeat": repeat,
            "machine": machine(),
            "commit": commit(),
            "model": self.options.model.name,
            "threads": self.options.threads,
            "budget_bytes": self.budget.nbytes,
        }

    def found(self) -> dict[str, list[list[Row]]]:
        """The rows of each program's runs, in the order of SYSTEMS: those of this work that the journal has."""
        done = self.journal.runs()
        rows = {system: [done[name] for name in self.names(system) if name in done] for system in SYSTEMS}
        return {system: repeats for system, repeats in rows.items() if repeats}


def figures_of(replay: Replay, found: dict[str, list[list[Row]]]) -> dict[str, Any]:
    work, budget = replay.work, replay.budget
    reference = found.get(EXACT)
    programs: dict[str, Any] = {}
    summaries = {system: [summary(rows) for rows in repeats] for system, repeats in found.items()}
    for system, repeats in found.items():
        programs[system] = {
            "runs": summaries[system],
            "program": repeats[0][0]["program"],
            "same_answers": same_answers(repeats[0], reference[0]) if reference else None,
            "spread": {path: over_repeats(summaries[system], path) for path in _KEY_FIGURES},
            "over_llmaas": {path: ratio(summaries[system], summaries.get("llmaas", ()), path) for path in _KEY_FIGURES},
        }
    return {
        "contexts": len(work.contexts),
        "calls": len(work.calls),
        "tokens": work.total,
        "longest": work.longest,
        "budget_bytes": budget.nbytes,
        "f16_bytes": work.total * budget.token_bytes,
        "programs": programs,
        "absent": {name: why for name, why in replay.absent.items() if name not in programs},
    }


def measure(options: Options, given: argparse.Namespace) -> Result:
    plan = plan_of(given, options.quick)
    journal = Journal(given.rows or rows_of(options.out))
    replays: dict[str, Replay] = {}
    with engine(options, 256) as thread:  # for its tokenizer, and the model's geometry
        token_bytes = thread.engine.info.geometry.token_bytes
        title = thread.engine.info.title
        for pattern in ["trace"] if given.trace else plan.patterns:
            work = work_of(trace_of(plan, given, pattern, options.seed), thread.engine, options.seed)
            budget = budget_of(work, token_bytes, plan.memory, beside=plan.beside, restarts=plan.restarts)
            replays[pattern] = Replay(work, budget, plan, options, journal)
    progress = Progress(sum(len(each.work.calls) for each in replays.values()) * len(plan.systems) * plan.repeats)
    figures: dict[str, Any] = {"command": given.command, "disk": "as it is", "memory": plan.memory, "cold": plan.cold}
    figures |= {"shared": plan.shared, "one_app": plan.one_app}
    if plan.disk_rate:
        figures["disk"] = f"{plan.disk_rate / 1e6:g} MB/s, by a store that sleeps after each read"
    for pattern, replay in replays.items():
        replay.carry_out(progress, pattern)
    checks: list[Bar] = []
    for pattern, replay in replays.items():
        found = replay.found()
        figures[pattern] = figures_of(replay, found)
        summaries = {name: each["runs"] for name, each in figures[pattern]["programs"].items()}
        conditions = {"fits": plan.memory >= 1, "disk_held": bool(plan.disk_rate), "shared": bool(plan.shared)}
        checks += bars(summaries, pattern, **conditions)
        checks += answers_bar(figures[pattern]["programs"].get("llmaas-f16", {}).get("same_answers"), pattern)
        if left_out := missing(summaries):
            say(f"{pattern}: no bars against {', '.join(left_out)}, which did not run")
        if given.html:
            about = {"model": title, **machine(), "memory": f"{replay.budget.nbytes / 1e6:.0f} MB for contexts"}
            path = given.html if len(replays) == 1 else given.html.with_stem(f"{given.html.stem}-{pattern}")
            path.write_text(page(found, f"Replay: {pattern}", about), encoding="utf-8")
            say(f"the report: {path}")
    return Result(title, figures, checks)


def rows_of(out: Path | None) -> Path:
    """The journal beside the result: an interrupted run that is given the same ``--out`` goes on."""
    return ROOT / "bench/out/replay.jsonl" if out is None else out.with_suffix(".rows.jsonl")


def plan_of(given: argparse.Namespace, quick: bool) -> Plan:
    base = QUICK if quick else FULL
    fields = ("calls", "limit", "restarts", "repeats", "memory", "disk_rate", "beside", "shared")
    chosen: dict[str, Any] = {name: getattr(given, name) for name in fields if getattr(given, name) is not None}
    if given.n_contexts:
        chosen["contexts"] = given.n_contexts
    if given.systems:
        chosen["systems"] = given.systems
    if given.pattern:
        chosen["patterns"] = given.pattern
    others = [name for name in chosen.get("systems", base.systems) if SYSTEMS[name].kind != "llmaas"]
    if chosen.get("disk_rate") and others:
        # The kernel's throttle lets a tenth of a second's bytes through at once, which is more than a context has.
        raise SystemExit(f"--disk-rate holds the service alone: leave {', '.join(others)} out of --systems")
    return replace(base, cold=not given.warm, one_app=given.one_app, **chosen)


def _several(known: Sequence[str]) -> Any:
    def names(text: str) -> list[str]:
        found = list(known) if text == "all" else text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return found

    return names


def own_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a trace (docs/traces.md), with text or without")
    parser.add_argument("--contexts", type=Path, metavar="FILE", help="conversations, JSON lines: app, id, turns")
    parser.add_argument("--pattern", type=_several([*PATTERNS, "phone"]), metavar="P,...", help="who is called next")
    parser.add_argument("--n-contexts", type=int, metavar="N", help=f"contexts (default {FULL.contexts})")
    parser.add_argument("--calls", type=int, metavar="N", help=f"calls after all contexts began ({FULL.calls})")
    parser.add_argument("--limit", type=int, metavar="TOKENS", help=f"of a context at most ({FULL.limit})")
    parser.add_argument("--memory", type=float, metavar="PART", help=f"RAM for contexts, of their f16 ({FULL.memory})")
    parser.add_argument(
        "--systems", type=_several(list(SYSTEMS)), metavar="S,...", help=f"all, or of {', '.join(SYSTEMS)}"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="runs of each program (1); 3 give a spread")
    parser.add_argument("--restarts", type=int, metavar="N", help="contexts called after a restart")
    parser.add_argument("--warm", action="store_true", help="leave files in the page cache")
    parser.add_argument("--disk-rate", type=int, metavar="BYTES", help="that the service reads in a second at most")
    parser.add_argument("--beside", type=int, metavar="N", help="contexts called while another answer is streamed")
    parser.add_argument("--shared", type=int, metavar="TOKENS", help="of a text with which all contexts begin")
    parser.add_argument("--one-app", action="store_true", help="all contexts are of one app, which may share chunks")
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="journal (default: beside --out, else bench/out/replay.jsonl)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report")
    return parser


def _lines(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield (__doc__ or "").strip()
    yield "Options of this bench:"
    yield parser.format_help()


if __name__ == "__main__":
    own, command = own_options(), command_of("replay", sys.argv[1:])
    given, sys.argv[1:] = own.parse_known_args()  # what is left are the options of all benches
    given.command = command
    sys.exit(main("replay", "\n\n".join(_lines(own)), lambda options: measure(options, given)))

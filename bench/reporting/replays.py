"""The sections of bench.replay on the page of results.

Law: figures are medians over the runs of a program, as ``replaying.figures`` makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench.replaying.figures import over_repeats
from bench.replaying.systems import EXACT, SYSTEMS
from bench.reporting.markdown import Line, about, command, item, of_bench, prose, table

_COLUMNS = (
    ("TTFT p50", "ttft_ms.p50", 1.0),
    ("p99", "ttft_ms.p99", 1.0),
    ("switch p50", "switch_ms.p50", 1.0),
    ("p99", "switch_ms.p99", 1.0),
    ("restart", "ttft_restart_ms.p50", 1.0),
    ("MB", "peak_anonymous", 1e-6),
    ("MB written", "took.written_bytes", 1e-6),
    ("CPU s", "took.cpu_s", 1.0),
    ("busy %", "others_cpu", 100.0),
)
_FEELS = (
    ("TTFT p50", "ttft_ms.p50", 1.0),
    ("switch", "switch_ms.p50", 1.0),
    ("prefill", "prefill_ms.p50", 1.0),
    ("gap p50", "stream_ms.alone.p50", 1.0),
    ("beside p50", "stream_ms.during.p50", 1.0),
    ("p99", "stream_ms.during.p99", 1.0),
    ("max", "stream_ms.during.max", 1.0),
    ("others' TTFT", "ttft_beside_ms.p50", 1.0),
)
HEAD = """\
Milliseconds; the median over the runs of a program. **TTFT**: from an app's call to its first
token, of calls of another context than the one before. **switch**: the part of it until the
context was back, where the program tells it. **restart**: TTFT p50 of the first calls after the
program was started again. **MB**: the most anonymous memory, weights that are copied included.
**MB written** and **CPU s**: from the first call on, making the contexts not counted. **busy %**:
the part of the machine that other processes took meanwhile; above 3 the times are longer than they
would be, for each program by another factor, so that only large differences mean something.

What a user feels is in the second table. TTFT is mostly the **prefill** of the new turn, and only
in part the switch. **gap**: between two tokens of an answer that is streamed to an app of its own;
**beside**: the same while another context is brought back and prefilled; **others' TTFT**: how long
those others wait, while that answer is streamed."""


def sections(lines: Iterable[Line]) -> Iterator[str]:
    for line in of_bench(lines, "replay"):
        for pattern, found in line["figures"].items():
            if isinstance(found, dict) and found.get("programs"):
                yield from _section(line, pattern, found)


def _section(line: Line, pattern: str, found: dict[str, Any]) -> Iterator[str]:
    yield f"### {line['model']}, {', '.join([pattern, *special(line['figures'])])}"
    yield prose(_conditions(line["figures"], found) + about(line))
    yield command(line["figures"]["command"])
    programs = found["programs"]
    yield _table(programs, _COLUMNS)
    yield _table(programs, _FEELS)
    absent = {name: " ".join(why.split()) for name, why in found.get("absent", {}).items()}
    yield "\n".join(
        [*_programs(programs), *(item(f"`{name}` could not be run: {why}") for name, why in absent.items())]
    )


def special(figures: dict[str, Any]) -> Iterator[str]:
    """What sets a replay apart from the others of the same model and pattern."""
    if figures.get("memory", 0) >= 1:
        yield "RAM for all"
    if figures.get("disk", "as it is") != "as it is":
        yield f"disk of {figures['disk'].partition(',')[0]}"
    if figures.get("shared"):
        yield "one beginning"
    if figures.get("one_app"):
        yield "one app"


def _conditions(figures: dict[str, Any], found: dict[str, Any]) -> str:
    cache = "Files leave the page cache before each call" if figures["cold"] else "Files stay in the page cache"
    shared = f"All contexts begin with the same {figures['shared']} tokens. " if figures.get("shared") else ""
    owner = "All are of one app. " if figures.get("one_app") else ""
    return (
        f"{found['contexts']} contexts, {found['tokens']} tokens in all, the longest {found['longest']}; "
        f"{found['calls'] - found['contexts']} calls after they began. {shared}{owner}RAM for contexts: "
        f"{found['budget_bytes'] / 1e6:.0f} MB of the {found['f16_bytes'] / 1e6:.0f} MB that they would take as f16. "
        f"{cache}. Disk: {figures['disk']}. "
    )


def _table(programs: dict[str, Any], columns: Sequence[tuple[str, str, float]]) -> str:
    rows = [
        [name, *(_cell(program["runs"], path, scale) for _, path, scale in columns), len(program["runs"])]
        for name, program in programs.items()
    ]
    return table(["program", *(name for name, _, _ in columns), "runs"], rows)


def _programs(programs: dict[str, Any]) -> Iterator[str]:
    for name, program in programs.items():
        same = program["same_answers"]
        answers = "" if same is None or name == EXACT else f"; {same:.0%} of its answers are those of `{EXACT}`"
        failed = sum(run["failed"] for run in program["runs"])
        why = next((run["why"] for run in program["runs"] if run.get("why")), "")
        broken = f"; {failed} calls failed, the first: {' '.join(str(why).split())[:120]}" if failed else ""
        yield item(f"`{name}`: {SYSTEMS[name].about}{answers}{broken}{_spread(program)}.")


def _spread(program: dict[str, Any]) -> str:
    found = program["spread"].get("ttft_ms.p50")
    return f"; TTFT p50 of its runs within {found[1]:.3g} ms" if found and len(program["runs"]) > 1 else ""


def _cell(runs: Sequence[dict[str, Any]], path: str, scale: float) -> float | None:
    found = over_repeats(runs, path)
    return None if found is None else found[0] * scale

"""Writes docs/results.md from result files: no figure on that page is typed by hand.

    python -m bench.results              writes the page
    python -m bench.results --check      exit code 1 if it is not what the files say

The files are docs/results/*.jsonl: lines that ``bench.replay --out`` made. To change the page, run the bench again.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from bench.lib.machine import ROOT
from bench.replaying.figures import over_repeats
from bench.replaying.systems import SYSTEMS

FOLDER, PAGE = ROOT / "docs/results", ROOT / "docs/results.md"
_WIDTH = 100
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
_HEAD = """\
# Results

How long a user waits when apps take turns on one model: the service, under several policies, and
other programs, on the same machine, with the same bytes of RAM for contexts, in one run. This page
is made by `bench/results.py` of the files in `docs/results/`; `bench/README.md` says what each
figure is and `python -m bench.replay --help` how to measure your own machine.

Milliseconds; the median over the runs of a program. **TTFT**: from an app's call to its first
token, of calls of another context than the one before. **switch**: the part of it until the
context was back, where the program tells it. **restart**: TTFT p50 of the first calls after the
program was started again. **MB**: the most anonymous memory, weights that are copied included.
**MB written** and **CPU s**: from the first call on, making the contexts not counted. **busy %**:
the part of the machine that other processes took meanwhile; above 3 the times are longer than they
would be, for each program by another factor, so that only large differences mean something.
"""
_PAPERS = """\
## Beside the papers

These are other machines and other models, so the figures stand beside each other and are not
compared.

| source | machine, model | what | figure |
|---|---|---|---|
| LLMS, arXiv 2403.11805 | Jetson Orin NX, Llama-2-7B, INT8 KV | mean switch, 8 contexts | 0.27 s |
| the same | without its recomputing pipeline | the same | 1.62 s |
| the same | Xiaomi 14, 4096 tokens | computing a context anew | 22.92 s |
| Agent Memory, arXiv 2603.04428 | M4 Pro, Llama-3.1-8B, 4-bit KV | TTFT at 4K, warm | 0.29 s |
| the same | the same | TTFT at 4K, computed anew | 10.2 s |
"""


def page(lines: Sequence[dict[str, Any]]) -> str:
    parts = [_HEAD]
    for line in lines:
        for pattern, found in line["figures"].items():
            if isinstance(found, dict) and found.get("programs"):
                parts.append("\n".join(_section(line, pattern, found)))
    return "\n".join([*parts, _PAPERS])


def _section(line: dict[str, Any], pattern: str, found: dict[str, Any]) -> Iterator[str]:
    machine, figures = line["machine"], line["figures"]
    yield f"## {line['model']}, {pattern}\n"
    cache = "Files leave the page cache before each call" if figures["cold"] else "Files stay in the page cache"
    about = (
        f"{found['contexts']} contexts, {found['tokens']} tokens in all, the longest {found['longest']}; "
        f"{found['calls'] - found['contexts']} calls after they began. RAM for contexts: "
        f"{found['budget_bytes'] / 1e6:.0f} MB of the {found['f16_bytes'] / 1e6:.0f} MB that they would take as f16. "
        f"{cache}. Disk: {figures['disk']}. {machine['cpu']}, {machine['cores']} cores; commit {line['commit']}, "
        f"{line['time'][:10]}."
    )
    yield textwrap.fill(about, _WIDTH) + "\n"
    yield f"```\n{_wrapped(figures['command'])}\n```\n"
    yield _row(["program", *(name for name, _, _ in _COLUMNS), "runs"])
    yield _row(["---", *("--:" for _ in range(len(_COLUMNS) + 1))])
    for name, program in found["programs"].items():
        yield _row([name, *(_cell(program["runs"], path, scale) for _, path, scale in _COLUMNS), len(program["runs"])])
    yield ""
    for name, program in found["programs"].items():
        same = program["same_answers"]
        answers = "" if same is None or name == "exact" else f"; {same:.0%} of its answers are those of `exact`"
        failed = sum(run["failed"] for run in program["runs"])
        broken = f"; {failed} calls failed" if failed else ""
        told = f"* `{name}`: {SYSTEMS[name].about}{answers}{broken}{_spread(program)}."
        yield textwrap.fill(told, _WIDTH, subsequent_indent="  ")
    yield ""


def _spread(program: dict[str, Any]) -> str:
    found = program["spread"].get("ttft_ms.p50")
    return f"; TTFT p50 of its runs within {found[1]:.3g} ms" if found and len(program["runs"]) > 1 else ""


def _cell(runs: Sequence[dict[str, Any]], path: str, scale: float) -> str:
    found = over_repeats(runs, path)
    return "" if found is None else f"{found[0] * scale:.4g}"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _wrapped(command: str) -> str:
    return " \\\n".join(textwrap.wrap(command, _WIDTH - 4, subsequent_indent="  ", break_long_words=False))


def read_lines() -> list[dict[str, Any]]:
    return [
        json.loads(text)
        for path in sorted(FOLDER.glob("*.jsonl"))
        for text in path.read_text("utf-8").splitlines()
        if text
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    lines = read_lines()
    if not lines:
        print(f"there are no results in {FOLDER}", file=sys.stderr)
        return 2
    text = page(lines)
    if args.check:
        return int(PAGE.read_text("utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

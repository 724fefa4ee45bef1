"""One demo from its sizes to its verdict: plan, play, report.

Law: nothing is left behind but the folder with the results, however the demo ends.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from llmaas.cli.demo import plot
from llmaas.cli.demo.data import conversations
from llmaas.cli.demo.figures import memory_check
from llmaas.cli.demo.lines import budget_lines, megabytes
from llmaas.cli.demo.pace import measured_pace
from llmaas.cli.demo.plan import Plan, make_plan
from llmaas.cli.demo.report import report
from llmaas.cli.demo.run import Demo
from llmaas.cli.demo.summary import print_summary
from llmaas.cli.demo.view import view
from llmaas.cli.out import print_error, print_note
from llmaas.config import models
from llmaas.engine.llama.model import LlamaModel
from llmaas.frozen import frozen

_BUSY = 0.5
"""Load average for each core from which on figures suffer."""


@frozen
class DemoSession:
    """What is demonstrated, and where its results go."""

    model: Path
    model_name: str
    plan: Plan
    out: Path
    console: Console


def show_demo(model: Path | None, seconds: float, seed: int, out: Path) -> int:
    """Run a demo of about ``seconds``; returns the exit code."""
    model_file = models.find(model)
    out.mkdir(parents=True, exist_ok=True)
    loaded = LlamaModel(model_file)
    plan = make_plan(conversations(), loaded, seconds, seed, measured_pace(model_file))
    session = DemoSession(model_file, loaded.name, plan, out, Console(highlight=False))
    del loaded
    _introduce(session)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmaas-demo-", ignore_cleanup_errors=True)))
        stack.enter_context(_sigterm_as_ctrl_c())
        return _finish(session, _play(session, stack, root), root)


def _introduce(session: DemoSession) -> None:
    plan = session.plan
    title = f"llmaas demo: one model, {session.model.stem}, for {len(plan.apps)} apps"
    session.console.print(title, style="bold")
    for line in budget_lines(plan):
        session.console.print(f"  {line}", soft_wrap=True)
    if os.getloadavg()[0] > _BUSY * len(os.sched_getaffinity(0)):
        print_note("this machine is busy with other work: the demo will take longer, and its figures will be worse")


def _play(session: DemoSession, stack: ExitStack, root: Path) -> Demo:
    demo: Demo | None = None
    shown = view(session.console, session.plan, lambda: _gauge(demo, session.plan) if demo else "")
    demo = Demo(root, session.model, session.plan, shown)
    stack.callback(_uninterrupted(demo.close))
    with shown:
        demo.play()
    return demo


def _finish(session: DemoSession, demo: Demo, root: Path) -> int:
    """Write the results, print the summary, return the exit code."""
    plan, findings, out = session.plan, demo.findings, session.out
    peak, fullest = demo.memory.peak, demo.memory.fullest
    cells = findings.stats["cells"]["total"]
    check, bound = memory_check(plan, models.size_bytes(session.model), cells, peak)
    findings.checks.append(check)
    memory: dict[str, Any] = {
        "peak_bytes": peak.peak if peak else None,
        "at_fullest": asdict(fullest) if fullest else None,
        "bound_parts": bound,
        "samples": [[round(at, 2), sample.anon, sample.file] for at, sample in demo.memory.samples],
    }
    found = report(findings, plan, session.model, session.model_name, root, memory) | {"seconds_taken": demo.seconds}
    print_summary(session.console, findings, plan, found)
    results = out / "demo.json"
    results.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")
    session.console.print(f"\nfigures: {results}")
    _draw(session, demo, bound)
    failed = [check for check in findings.checks if not check.ok]
    for check in failed:
        print_error(f"did not hold: {check.name} ({check.text})")
    return 1 if failed else 0


def _draw(session: DemoSession, demo: Demo, bound: dict[str, int]) -> None:
    if not plot.available():
        print_note(f"no picture, since matplotlib is not installed; for one: {plot.HOW}")
        return
    plan, picture = session.plan, session.out / "demo.png"
    given = megabytes(plan.cells_bytes + plan.pool_bytes)
    title = f"llmaas demo: {session.model.stem}, {len(plan.apps)} apps, {given} of cells and pool"
    plot.draw(picture, demo.findings, demo.memory.samples, bound, title)
    session.console.print(f"picture: {picture}")


def _gauge(demo: Demo, plan: Plan) -> str:
    memory = demo.memory.now
    taken = f"   daemon's resident memory {megabytes(memory.rss)}" if memory else ""
    return f"{demo.seconds:3.0f} s of about {plan.seconds:.0f}{taken}"


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in the block: everything is cleaned up."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _uninterrupted(close: Callable[[], None]) -> Callable[[], None]:
    """``close``, which a second Ctrl-C does not leave half done."""

    def run() -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            close()
        finally:
            signal.signal(signal.SIGINT, before)

    return run

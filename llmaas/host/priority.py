"""The daemon's priority among other processes: its niceness, and the CPUs that its engine may use.

Law: threads inherit both from the thread that starts them, so both are set first: niceness before the parts of the
daemon are made, CPUs before the model is loaded. A system that lacks one of them can be asked about it; that is no
failure.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from llmaas.errors import MachineError

ROOT = Path("/")


def lower_priority(niceness: int, root: Path = ROOT) -> None:
    """Raise the niceness of this process to ``niceness``, for all its threads, now and to come. Never lowers it.

    Linux may schedule sessions as groups (autogroup, sched(7)), among which only a group's niceness counts. It is
    raised too if this process leads its session; a session that another process began is left alone. Raises
    MachineError.
    """
    try:
        for thread in _threads():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))
        if niceness and autogroups(root) and os.getsid(0) == os.getpid():
            (root / "proc/self/autogroup").write_text(str(niceness), "ascii")
    except OSError as error:
        raise MachineError(f"cannot set nice to {niceness}: {error.strerror}") from error


def _threads() -> list[int]:
    """The ids of this process's threads. 0, the process, where they are not told: outside Linux, where it has one
    niceness, and where /proc is hidden, where 0 is the thread that asks.
    """
    try:
        return [int(task.name) for task in Path("/proc/self/task").iterdir()]
    except OSError:
        return [0]


def autogroups(root: Path = ROOT) -> bool:
    """Whether niceness counts only among processes of the same session."""
    try:
        return (root / "proc/sys/kernel/sched_autogroup_enabled").read_text("ascii").strip() == "1"
    except OSError:
        return False


def can_bind() -> bool:
    """Whether threads can be bound to CPUs here (Linux)."""
    return hasattr(os, "sched_setaffinity")


def bind(cpus: tuple[int, ...]) -> None:
    """Let this thread, and those that it will start, run on ``cpus`` only. Raises MachineError."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise MachineError(
            f"cannot compute on CPUs {', '.join(map(str, cpus))}: {error.strerror}",
            hint="Are they online, and allowed to this process? See 'llmaas doctor'.",
        ) from error

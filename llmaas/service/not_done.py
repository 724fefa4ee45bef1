"""The answers to actions that could not even be begun.

Law: pure. Whoever waits for an action gets its answer, so that every call gets its reply.
"""

from __future__ import annotations

from llmaas.planner.actions import (
    Action,
    FetchChunks,
    LoadChunks,
    LowerChunks,
    MeasureChunks,
    RunStep,
    SaveChunks,
    WriteChunks,
)
from llmaas.planner.events import FAILED, Event, Fetched, Loaded, Lowered, Measured, Saved, StepFailed, Written


def not_done(action: Action) -> Event | None:
    """The event that says that nothing of the action was done; None for an action that has no answer."""
    match action:
        case RunStep():
            return StepFailed(action.step)
        case LoadChunks():
            return Loaded(action.load, 0)
        case FetchChunks():
            return Fetched(action.fetch, (FAILED,) * len(action.keys))
        case SaveChunks():
            return Saved(action.save, (FAILED,) * len(action.chunks))
        case WriteChunks():
            return Written(action.write, (FAILED,) * len(action.keys))
        case LowerChunks():
            return Lowered(action.lower, (FAILED,) * len(action.chunks))
        case MeasureChunks():
            return Measured(action.measure, ())
        case _:
            return None

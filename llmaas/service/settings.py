"""What a service is set up with.

Law: plain values. What the planner must know of them stands in ``PlannerChoices`` and nowhere else.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from llmaas.engine.base import Engine
from llmaas.frozen import frozen
from llmaas.planner.settings import PlannerChoices, PlannerSettings, planner_settings


@frozen(kw_only=True)
class ServiceSettings:
    """What an operator chooses. Bytes and requests as named."""

    planner: PlannerChoices = field(default_factory=PlannerChoices)
    write_rate: int = 0
    """Bytes a second that chunks are written to DISK at most; 0 or NO_QUOTA: as fast as the disk takes them."""
    queue_limit: int = 64
    """Calls of one app that may wait or run; more are refused as Busy."""
    keep_thoughts: bool = False
    """Past answers stay in a context as they were given, where a chat template would drop their thoughts."""
    app_contexts: int = 1024
    """Contexts that one app may keep."""
    anonymous_contexts: int = 64
    """How many of them may be anonymous; the oldest go."""
    app_text_bytes: int = 8 << 20
    """Bytes of text and tokens that one app may keep, in memory and on disk; NO_QUOTA: as many as it likes."""
    adaptive_threads: int | None = None
    """Threads of the engine, of which fewer are used while other processes need the cores; None: always all."""
    record: Path | None = None
    """File in which every event is recorded, for replay."""
    costs: Path | None = None
    """File that is given what was learned of this machine, at the end (``service.costs_file``)."""
    served_as: str = ""
    """The name that the model is registered under; "" if it is not."""
    keep_alive: float | None = None
    """Seconds without use after which the memory of the weights is given back; None: only while memory is short."""
    warm_start: bool = False
    """Bring the contexts that were used last back to CELLS after a start (``warm_start``)."""
    adapters: tuple[tuple[str, Path], ...] = ()
    """LoRA adapters to register at start, by name."""


def settings_for(engine: Engine, choices: PlannerChoices) -> PlannerSettings:
    """The planner's settings for this engine."""
    info = engine.info
    return planner_settings(
        choices,
        n_cells=engine.n_cells,
        n_seqs=engine.n_seqs,
        ctx_limit=min(engine.n_cells, info.n_ctx_train),
        geometry=info.geometry,
        max_batch=engine.max_batch,
        swappable=info.chunkable,
        state=info.state,
    )

"""What an operator chooses, and what of it the planner must know.

Law: plain values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmaas.engine.base import Engine
from llmaas.planner.settings import PlannerSettings, bit_settings
from llmaas.policies.scheduling import DEFAULT_SCHEDULING
from llmaas.records import NO_QUOTA, Precision


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What an operator chooses. Bytes, tokens and requests as named."""

    pool_bytes: int = 256 << 20
    disk_bytes: int = NO_QUOTA
    write_rate: int = 0
    """Bytes a second that swap-out may write; 0 or NO_QUOTA: as fast as it goes."""
    bits: float | Precision = 4.0
    """Mean bits per value of coded chunks, spent where they matter most; or one precision for all."""
    split: str = "balanced"
    """What is computed and what read of a context that comes back; see ``policies.split``."""
    prefill_slice: int = 256
    step_target: float = 0.1
    """Seconds that a step of the engine should take at most while somebody waits for its end."""
    max_running: int = 8
    scheduling: str = DEFAULT_SCHEDULING
    quantum: int = 64
    """Steps that a call may take before others of its priority get its place in CELLS, if they need it."""
    ageing_s: float = 5.0
    """Seconds without service that make a call more urgent by one."""
    rate: float | None = None
    """Tokens per second that all calls together may generate."""
    app_rate: float | None = None
    """The same for each app."""
    queue_limit: int = 64
    adaptive_threads: int = 0
    """Threads of the engine, of which fewer are used while other processes need the cores; 0: their number is fixed."""
    record: Path | None = None
    adapters: tuple[tuple[str, Path], ...] = ()
    """LoRA adapters, by name."""
    adapter_bytes: int = 256 << 20
    """What loaded adapters may take of RAM."""


def planner_settings(e: Engine, settings: ServiceSettings) -> PlannerSettings:
    """The planner's settings for this engine."""
    return PlannerSettings(
        n_cells=e.n_cells,
        n_seqs=e.n_seqs,
        pool_bytes=settings.pool_bytes,
        disk_bytes=settings.disk_bytes,
        ctx_limit=min(e.n_cells, e.info.n_ctx_train),
        geometry=e.info.geometry,
        swappable=e.info.chunkable,
        **bit_settings(settings.bits),
        max_batch=e.max_batch,
        split=settings.split,
        prefill_slice=settings.prefill_slice,
        step_target=settings.step_target,
        max_running=settings.max_running,
        scheduling=settings.scheduling,
        quantum=settings.quantum,
        ageing_s=settings.ageing_s,
        rate=settings.rate,
        app_rate=settings.app_rate,
        adapter_bytes=settings.adapter_bytes,
    )

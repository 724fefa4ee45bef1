"""What the planner is set up with: what an operator chooses, and facts of the engine and the model.

Law: plain values only, checked once, fixed for the planner's life; a recording begins with them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TypedDict

from llmaas.frozen import frozen
from llmaas.policies.bit_price import SPENDING
from llmaas.policies.eviction import DEFAULT_EVICTION, EVICTION
from llmaas.policies.scheduling import DEFAULT_SCHEDULING, SCHEDULING
from llmaas.policies.split import SPLIT
from llmaas.policies.wear import DEFAULT_WEAR, WEAR
from llmaas.records import CHUNK_TOKENS, NO_QUOTA, Geometry, Precision, StateSize


class BitSettings(TypedDict, total=False):
    """Some fields of PlannerChoices."""

    spending: str
    precision: Precision
    bits: float


_SAVE_BYTES = 6 << 20
"""Of the chunks that are exported at once, in f16: one chunk at least."""


@frozen(kw_only=True)
class PlannerChoices:
    """What an operator chooses of the planner's settings. The defaults are the daemon's."""

    pool_bytes: int = 256 << 20
    """What coded chunks in the POOL may take together."""
    disk_bytes: int = NO_QUOTA
    """What chunks on DISK may take together."""
    spending: str = "tolerance"
    """How bits are allocated to chunks, one of ``policies.bit_price.SPENDING``."""
    precision: Precision = Precision(4, 4)
    """What ``spending`` "uniform" gives every chunk."""
    bits: float = 4.0
    """Bytes that coded chunks may take together, in bits per value of K and V, scales and headers included."""
    split: str = "balanced"
    """What is computed and what is read of a context that comes back, one of ``policies.split.SPLIT``."""
    eviction: str = DEFAULT_EVICTION
    """Which chunks leave the POOL when room is needed, one of ``policies.eviction.EVICTION``."""
    wear: str = DEFAULT_WEAR
    """What is written to DISK, one of ``policies.wear.WEAR``."""
    wear_budget: int = NO_QUOTA
    """Bytes of chunks that should be written to DISK in a day at most."""
    prefill_slice: int = 512
    """Tokens of a prompt in one step at most; fewer, where others would wait too long for the step's end."""
    step_target: float = 0.1
    """Seconds that a step should take at most if another call waits for its end."""
    max_running: int = 8
    """Calls that may be in CELLS at once."""
    scheduling: str = DEFAULT_SCHEDULING
    """Which call is served next, one of ``policies.scheduling.SCHEDULING``."""
    quantum: int = 64
    """Steps that a call may take before others of its priority get its cells, if they need them."""
    ageing_s: float = 5.0
    """Seconds without service that make a call more urgent by one."""
    rate: float | None = None
    """Tokens per second that all calls together may generate."""
    app_rate: float | None = None
    """The same for each app that has no limit of its own."""
    adapter_bytes: int = 256 << 20
    """Memory that the LoRA adapters of the calls in CELLS may take together."""
    burst: int = 32
    """Steps that running answers may take before the planner decides again, if nothing else happens."""
    save_batch: int = 8
    """Chunks exported at once, at most; of a large model fewer (``planner_settings``). This bounds how long a step can
    be held up, and the f16 bytes in flight: four times this while a call waits for cells."""
    write_batch: int = 64
    """Chunks in one write at most."""


@frozen(kw_only=True)
class PlannerSettings(PlannerChoices):
    """All that a planner is made with: plain values, so that a recorded run can be planned again."""

    n_cells: int
    n_seqs: int
    ctx_limit: int
    """Tokens of the longest context: the model's limit, or all the cells."""
    geometry: Geometry
    swappable: bool = True
    """False for models whose sequences cannot be cut: they leave CELLS as a whole, and steps are never aborted."""
    state: StateSize | None = None
    """Of such a model, the size of what is kept of a whole sequence; None: nothing is, contexts are recomputed."""
    max_batch: int = 512
    """Tokens of one step at most."""
    rules: int = 2
    """By which it decides: 2 are today's, 1 those of recordings of version 0.1.0. Since then prompts of apps that take
    much wait for others', the cost of reading is learned from every load, not from slow ones only, and several saves
    are under way while a call waits for cells."""

    @property
    def measure(self) -> bool:
        """Whether the sensitivity of chunks is measured before they are coded."""
        return self.spending != "uniform" and self.swappable

    def __post_init__(self) -> None:
        if self.swappable and self.state is not None:
            raise ValueError("chunks or whole states are kept, not both")
        if not 0 < self.ctx_limit <= self.n_cells:
            raise ValueError(f"ctx_limit must be in 1 .. n_cells={self.n_cells}, not {self.ctx_limit}")
        if self.spending not in SPENDING:
            raise ValueError(f"spending is one of {', '.join(SPENDING)}, not {self.spending}")
        if self.eviction not in EVICTION:
            raise ValueError(f"eviction is one of {', '.join(EVICTION)}, not {self.eviction}")
        if self.scheduling not in SCHEDULING:
            raise ValueError(f"scheduling is one of {', '.join(SCHEDULING)}, not {self.scheduling}")
        if self.quantum < 1 or self.ageing_s <= 0 or self.step_target <= 0:
            raise ValueError("quantum must be at least 1, ageing_s and step_target above 0")
        if self.wear not in WEAR:
            raise ValueError(f"wear is one of {', '.join(WEAR)}, not {self.wear}")
        if self.split not in SPLIT:
            raise ValueError(f"split is one of {', '.join(SPLIT)}, not {self.split}")


def planner_settings(
    choices: PlannerChoices,
    *,
    n_cells: int,
    n_seqs: int,
    ctx_limit: int,
    geometry: Geometry,
    max_batch: int,
    swappable: bool = True,
    state: StateSize | None = None,
) -> PlannerSettings:
    """What an operator has chosen, together with the facts of an engine and its model."""
    chosen = {field.name: getattr(choices, field.name) for field in fields(PlannerChoices)}
    chosen["save_batch"] = min(choices.save_batch, max(1, _SAVE_BYTES // (CHUNK_TOKENS * geometry.token_bytes)))
    return PlannerSettings(
        **chosen,
        n_cells=n_cells,
        n_seqs=n_seqs,
        ctx_limit=ctx_limit,
        geometry=geometry,
        max_batch=max_batch,
        swappable=swappable,
        state=state,
    )


def bit_settings(bits: float | Precision) -> BitSettings:
    """Choices for a mean number of bits, spent where they matter most, or for the same precision everywhere."""
    if isinstance(bits, Precision):
        return {"spending": "uniform", "precision": bits}
    return {"spending": "tolerance", "bits": bits}

"""What a device can hold and how fast it will switch: RAM divided among weights, CELLS and POOL, and a trace replayed.

Law: pure arithmetic, and the replay of ``simulator``, in which the planner that serves decides.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.codec.kernels import NUMPY
from llmaas.planner.settings import PlannerChoices, PlannerSettings, planner_settings
from llmaas.records import CHUNK_TOKENS, LOSSLESS, Geometry
from llmaas.replay.figures import figures
from llmaas.replay.prices import Costs
from llmaas.replay.report import ReplayReport
from llmaas.replay.simulator import Replay
from llmaas.traces.call import TraceCall

OWN_BYTES = 150 << 20
"""What the daemon takes at most beside weights, cells and pool (README.md, "Results")."""
_LEAST_POOL = 8 << 20
"""Chunks that are saved together must pass through it."""
_CELLS_PART = 4
"""One part in so many of the RAM for contexts is cells, if contexts are not shorter or longer than that."""
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
_DAY_S = 86400.0


@frozen
class PlannedModel:
    """``limit``: tokens of the longest context that it was made for."""

    name: str
    geometry: Geometry
    weights_bytes: int
    limit: int


@frozen
class RamPlan:
    """Who gets which bytes of RAM. ``others``: the system and other programs. ``free``: nobody needs it."""

    others: int
    weights: int
    own: int
    cells: int
    pool: int
    free: int
    n_cells: int
    """Tokens that the cells hold."""


@frozen
class HeldContexts:
    """How many contexts of ``length`` tokens fit where, and how long it takes to bring one back from there, or to
    compute it. DISK holds copies of those in the POOL, too.
    """

    length: int
    in_cells: int
    in_pool: int
    on_disk: int
    pool_ms: float
    disk_ms: float
    anew_ms: float


def coded_token_bytes(geometry: Geometry, choices: PlannerChoices) -> float:
    """Bytes of a token outside CELLS, in the mean."""
    if choices.spending == "uniform":
        return Codec(geometry, kernels=NUMPY).encoded_size(CHUNK_TOKENS, choices.precision) / CHUNK_TOKENS
    return geometry.token_bytes * choices.bits / LOSSLESS.k


def divide_ram(
    model: PlannedModel,
    choices: PlannerChoices,
    *,
    ram: int,
    others: int,
    contexts: int,
    length: int,
    n_cells: int | None = None,
    pool: int | None = None,
) -> RamPlan:
    """The RAM of a device, for ``contexts`` of at most ``length`` tokens. ``n_cells``, ``pool``: chosen already.

    Raises BadRequest if it is not enough for one context.
    """
    token, own = model.geometry.token_bytes, OWN_BYTES
    left = ram - others - model.weights_bytes - own
    if n_cells is None:
        wanted = min(max(left // _CELLS_PART // token, length), contexts * length)
        n_cells = -(-wanted // 256) * 256
    left -= n_cells * token
    if pool is None:
        everything = int(contexts * length * coded_token_bytes(model.geometry, choices))
        pool = max(_LEAST_POOL, min(left, everything + _LEAST_POOL))
    if left < pool:
        missing = pool - left
        raise BadRequest(
            f"{ram >> 20} MiB of RAM are {-(-missing >> 20)} MiB too few: others keep {others >> 20} MiB, weights take "
            f"{model.weights_bytes >> 20}, the program {own >> 20}, {n_cells} cells {n_cells * token >> 20}, the pool "
            f"{pool >> 20}",
            hint="Give a smaller model, fewer tokens in a context (--length), or less to others (--reserve).",
        )
    return RamPlan(others, model.weights_bytes, own, n_cells * token, pool, left - pool, n_cells)


def held(
    model: PlannedModel, choices: PlannerChoices, ram: RamPlan, disk_bytes: int, costs: Costs
) -> list[HeldContexts]:
    """How many contexts fit, by their length."""
    token = coded_token_bytes(model.geometry, choices)
    found = []
    for n in (n for n in LENGTHS if n <= min(model.limit, ram.n_cells)):
        coded = n * token
        place, read = costs.place(coded, n * model.geometry.token_bytes), costs.read(coded)
        times = (place * 1e3, (read + place) * 1e3, costs.prefill(0, n) * 1e3)
        found.append(HeldContexts(n, ram.n_cells // n, int(ram.pool / coded), int(disk_bytes / coded), *times))
    return found


def settings_of(
    model: PlannedModel, choices: PlannerChoices, ram: RamPlan, *, n_seqs: int, max_batch: int
) -> PlannerSettings:
    """The planner's settings on that device."""
    return planner_settings(
        choices,
        n_cells=ram.n_cells,
        n_seqs=n_seqs,
        ctx_limit=ram.n_cells,
        geometry=model.geometry,
        max_batch=max_batch,
    )


def expected(trace: Sequence[TraceCall], settings: PlannerSettings, costs: Costs) -> dict[str, object]:
    """What the trace comes to on that device: milliseconds, parts, and bytes a day."""
    return outcome(Replay(settings, costs).run(trace), costs)


def outcome(report: ReplayReport, costs: Costs) -> dict[str, object]:
    """The figures of one replay. ``anew_ms_p50``: computing what a switch brings back, all of it, from its tokens."""
    found = figures(report)
    counts = report.tally
    tokens = [counts.tokens_from_cells, counts.tokens_from_pool, counts.tokens_from_disk, counts.tokens_recomputed]
    parts = dict(zip(("cells", "pool", "disk", "recomputed"), (n / max(1, sum(tokens)) for n in tokens), strict=True))
    anew = [costs.prefill(0, n) * 1e3 for call in report.calls if (n := sum(call.sources))]
    names = ("calls", "switches", "switch_ms_mean", "switch_ms_p50", "switch_ms_p99", "ttft_ms_p50", "ttft_ms_p99")
    return {
        **{name: found[name] for name in names},
        "anew_ms_p50": statistics.median(anew) if anew else 0.0,
        "from": parts,
        "bytes_written": counts.bytes_written,
        "bytes_written_a_day": counts.bytes_written * _DAY_S / max(_DAY_S, _seconds(report)),
    }


def _seconds(report: ReplayReport) -> float:
    """From the first call to the end of the last."""
    return max(c.done for c in report.calls) - min(c.call.t for c in report.calls) if report.calls else 0.0

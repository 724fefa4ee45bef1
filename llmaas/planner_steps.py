"""F4. Engine steps: what one batch holds, and what its results mean for the calls in it.

Law: every running call that decodes is in every step; prefills share what room is left, first come first served, so
that a long one never stalls the decodes by more than one slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmaas.actions import Outcome, StepItem
from llmaas.events import Drawn
from llmaas.planner_state import Job, PlannerSettings, Stage, Tally
from llmaas.records import RequestId


def compose(running: Iterable[Job], settings: PlannerSettings) -> tuple[StepItem, ...]:
    """Items of the next step; the jobs in it are marked. Empty if nobody has anything to compute."""
    jobs = [job for job in running if job.stage in (Stage.DECODING, Stage.PREFILLING, Stage.RECOMPUTING)]
    room, slice_left = settings.max_batch, settings.prefill_slice
    items = []
    for job in jobs:
        if job.stage is Stage.DECODING and room:
            items.append(_item(job, job.context.cells + 1, sample=True))
            room -= 1
    for job in jobs:
        if job.stage is Stage.DECODING:
            continue
        end = job.n_total if job.stage is Stage.PREFILLING else job.until
        stop = min(end, job.context.cells + min(room, slice_left))
        n = stop - job.context.cells
        if n > 0:
            sample = job.stage is Stage.PREFILLING and stop == job.n_total and job.max_new > 0
            items.append(_item(job, stop, sample=sample))
            room -= n
            slice_left -= n
    return tuple(items)


def burst(items: Iterable[StepItem], jobs: Mapping[RequestId, Job], settings: PlannerSettings) -> int:
    """Steps that these items may take in a row: none of them may run past its end, and none may be a prefill."""
    left = settings.burst
    for item in items:
        job = jobs[item.request]
        if job.stage is not Stage.DECODING:
            return 1
        left = min(left, job.max_new - job.produced, settings.ctx_limit - job.n_total - job.produced)
    return max(left, 1)


def _item(job: Job, stop: int, *, sample: bool) -> StepItem:
    assert job.context.seq is not None
    job.in_step = True
    return StepItem(job.request, job.context.id, job.context.seq, job.context.cells, stop, sample)


def stepped(
    job: Job, item: StepItem, drawn: Drawn, steps: int, settings: PlannerSettings, tally: Tally
) -> Outcome | None:
    """Take one item's result into its job; the job's outcome if it has ended."""
    n = item.stop - item.start
    job.in_step = False
    job.context.cells = item.stop + steps - 1
    job.produced += steps - 1
    tally.tokens_generated += steps - 1
    if job.stage is Stage.RECOMPUTING:
        job.recomputed += n
        if item.stop >= job.until:
            job.stage = Stage.SWITCHING
    elif job.stage is Stage.PREFILLING:
        tally.tokens_prefilled += n
        if item.stop == job.n_total:
            job.stage = Stage.DECODING
    if drawn in (Drawn.TOKEN, Drawn.LAST):
        job.produced += 1
        tally.tokens_generated += 1
    return _outcome(job, drawn, settings.ctx_limit)


def _outcome(job: Job, drawn: Drawn, ctx_limit: int) -> Outcome | None:
    if drawn in (Drawn.LAST, Drawn.END):
        return Outcome.STOP
    if job.cancelled:
        return Outcome.CANCELLED
    if job.stage is not Stage.DECODING:
        return None
    if job.max_new == 0:
        return Outcome.APPENDED
    if job.produced >= job.max_new:
        return Outcome.LENGTH
    return Outcome.CONTEXT_FULL if job.n_total + job.produced >= ctx_limit else None

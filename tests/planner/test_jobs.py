"""A job's life: every move that the table has is possible, and every other raises and changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from llmaas.errors import PolicyBug
from llmaas.planner.actions import Outcome
from llmaas.planner.context import Context
from llmaas.planner.jobs import COMPUTING, TRANSITIONS, Job, JobMove, Stage
from llmaas.records import AppId, ChunkKey, ContextId, RequestId

LEGAL = """
    queued       be admitted         switching
    queued       end                 ended
    switching    begin a load        loading
    switching    begin to recompute  recomputing
    switching    arrive in CELLS     prefilling
    switching    be paused           queued
    switching    end                 ended
    loading      end a load          switching
    recomputing  end recomputing     switching
    recomputing  be paused           queued
    recomputing  end                 ended
    prefilling   end its prefill     decoding
    prefilling   be paused           queued
    prefilling   end                 ended
    decoding     be paused           queued
    decoding     end                 ended
"""
WAY = {
    Stage.QUEUED: [],
    Stage.SWITCHING: [JobMove.ADMIT],
    Stage.LOADING: [JobMove.ADMIT, JobMove.LOAD],
    Stage.RECOMPUTING: [JobMove.ADMIT, JobMove.COMPUTE],
    Stage.PREFILLING: [JobMove.ADMIT, JobMove.ARRIVE],
    Stage.DECODING: [JobMove.ADMIT, JobMove.ARRIVE, JobMove.PREFILLED],
    Stage.ENDED: [JobMove.END],
}
"""The moves that bring a new job to each stage."""
DO: dict[JobMove, Callable[[Job], None]] = {
    JobMove.ADMIT: lambda job: job.admit(200, 1.0),
    JobMove.LOAD: Job.begin_load,
    JobMove.LOADED: Job.end_load,
    JobMove.COMPUTE: lambda job: job.begin_recompute(64),
    JobMove.COMPUTED: Job.end_recompute,
    JobMove.ARRIVE: Job.arrive,
    JobMove.PREFILLED: Job.end_prefill,
    JobMove.PAUSE: Job.pause,
    JobMove.END: Job.end,
}


def job_in(stage: Stage, *, in_step: bool = False) -> Job:
    context = Context(ContextId("c"), AppId("0/test"), [ChunkKey(b"k" * 16)] * 2, 100, seq=1, running=True)
    job = Job(RequestId(1), context, n_total=150, max_new=10, priority=5)
    for move in WAY[stage]:
        DO[move](job)
    if in_step:
        job.join_step(7, 10)
    return job


def legal() -> dict[tuple[str, str], str]:
    rows = ([part.strip() for part in line.split("  ") if part.strip()] for line in LEGAL.strip().splitlines())
    return {(stage, move): then for stage, move, then in rows}


def test_the_table_is_the_one_that_is_drawn() -> None:
    assert {(stage.value, move.value): then.value for (stage, move), then in TRANSITIONS.items()} == legal()


@pytest.mark.parametrize(("stage", "move"), list(itertools.product(Stage, JobMove)))
def test_a_move_is_possible_if_it_is_in_the_table_and_else_raises(stage: Stage, move: JobMove) -> None:
    job = job_in(stage)
    then = legal().get((stage.value, move.value))
    if then is not None:
        DO[move](job)
        assert job.stage.value == then
        return
    with pytest.raises(PolicyBug, match=f"{stage.value} cannot {move.value}"):
        DO[move](job)
    assert job.stage is stage


@pytest.mark.parametrize(("stage", "move"), list(itertools.product(COMPUTING, JobMove)))
def test_a_job_in_a_step_makes_no_move_until_the_step_is_over(stage: Stage, move: JobMove) -> None:
    job = job_in(stage, in_step=True)
    with pytest.raises(PolicyBug, match="in a step"):
        DO[move](job)
    assert job.stage is stage and job.in_step
    job.leave_step()
    assert not job.in_step and not job.cautious and job.last_step == 7


@pytest.mark.parametrize("stage", list(Stage))
def test_only_a_job_that_computes_takes_part_in_a_step_and_once_at_a_time(stage: Stage) -> None:
    job = job_in(stage)
    with pytest.raises(PolicyBug):
        job.leave_step()
    if stage in COMPUTING:
        job.join_step(1, 64)
        assert job.in_step
    with pytest.raises(PolicyBug):
        job.join_step(2, 64)
    assert job.in_step is (stage in COMPUTING)


@pytest.mark.parametrize("stage", list(Stage))
def test_a_job_is_asked_to_end_once_at_most_and_not_when_it_has_ended(stage: Stage) -> None:
    job = job_in(stage)
    if stage is not Stage.ENDED:
        job.end_early(Outcome.CANCELLED)
    with pytest.raises(PolicyBug):
        job.end_early(Outcome.EXPIRED)
    assert job.ending is (None if stage is Stage.ENDED else Outcome.CANCELLED)


def test_an_aborted_step_makes_a_job_cautious_for_good() -> None:
    job = job_in(Stage.PREFILLING, in_step=True)
    job.leave_step(aborted=True)
    job.join_step(8, 20)
    job.leave_step()
    assert job.cautious


@pytest.mark.parametrize("stop", [0, 201])
def test_a_step_goes_forward_and_no_further_than_the_cells_that_are_reserved(stop: int) -> None:
    job = job_in(Stage.PREFILLING)
    with pytest.raises(PolicyBug):
        job.join_step(1, stop)


def test_a_reservation_has_room_for_all_tokens() -> None:
    with pytest.raises(PolicyBug):
        job_in(Stage.QUEUED).admit(149, 0.0)


@pytest.mark.parametrize("until", [0, 101])
def test_only_tokens_that_chunks_exist_for_are_recomputed(until: int) -> None:
    with pytest.raises(PolicyBug):
        job_in(Stage.SWITCHING).begin_recompute(until)


def test_no_more_than_the_goal_is_in_cells_before_the_prefill() -> None:
    job = job_in(Stage.SWITCHING)
    job.context.cells = 150  # the last token must still be computed
    with pytest.raises(PolicyBug):
        job.arrive()


@pytest.mark.parametrize("stage", list(Stage))
def test_a_job_in_order_has_no_problems(stage: Stage) -> None:
    job = job_in(stage)
    job.context.cells = 149 if stage is Stage.DECODING else 0
    assert job.check() == []


def test_problems_are_named() -> None:
    job = job_in(Stage.DECODING)
    job.context.cells = 300
    job.held.add(ChunkKey(b"?" * 16))
    assert len(job.check()) == 3

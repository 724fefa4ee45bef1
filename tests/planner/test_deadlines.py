"""Deadlines: each is named once, and those of calls that have ended are forgotten."""

from __future__ import annotations

from llmaas.planner.actions import Outcome
from llmaas.planner.context import Context
from llmaas.planner.deadlines import Deadlines
from llmaas.planner.jobs import Job
from llmaas.records import AppId, ContextId, RequestId


def jobs(n: int) -> dict[RequestId, Job]:
    context = Context(ContextId("c"), AppId("0/test"), [], 0)
    return {request: Job(request, context, 10, 1, 5) for request in map(RequestId, range(n))}


def test_an_expired_call_is_named_once_and_not_if_it_is_ending_or_has_ended() -> None:
    calls = jobs(4)
    deadlines = Deadlines(calls)
    for request in calls:
        deadlines.add(request, 10.0 + request)
    calls[RequestId(1)].end_early(Outcome.CANCELLED)
    del calls[RequestId(2)]
    assert deadlines.expired(9.9) == []
    assert deadlines.expired(13.0) == [calls[RequestId(0)], calls[RequestId(3)]]
    assert deadlines.expired(99.0) == [] and deadlines.next() is None


def test_the_next_deadline_is_that_of_a_call_that_has_not_ended() -> None:
    calls = jobs(2)
    deadlines = Deadlines(calls)
    deadlines.add(RequestId(0), 1.0)
    deadlines.add(RequestId(1), 2.0)
    assert deadlines.next() == 1.0
    del calls[RequestId(0)]
    assert deadlines.next() == 2.0


def test_many_calls_that_have_ended_are_tidied_up() -> None:
    calls = jobs(200)
    deadlines = Deadlines(calls)
    for request in calls:
        deadlines.add(request, 1e9)
    for request in list(calls)[:190]:
        del calls[request]
        deadlines.tidy()
    assert len(deadlines) <= 64
    assert deadlines.next() == 1e9

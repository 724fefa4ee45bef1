"""Deadlines: the moments from which nobody wants a call's result any more.

Law: an expired call is named once. Calls that have ended stay here until their deadline, or until they are too many.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from llmaas.planner.jobs import Job
from llmaas.records import RequestId

_FEW = 64
"""So many entries of calls that have ended are not worth tidying up."""


class Deadlines:
    """``jobs``: all calls that have not ended, by request; kept by others."""

    def __init__(self, jobs: Mapping[RequestId, Job]) -> None:
        self._jobs = jobs
        self._heap: list[tuple[float, RequestId]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: RequestId, deadline: float) -> None:
        heapq.heappush(self._heap, (deadline, request))

    def expired(self, now: float) -> list[Job]:
        """Calls whose deadline has passed, and which are not ending already; each is named once."""
        late: list[Job] = []
        while self._heap and self._heap[0][0] <= now:
            job = self._jobs.get(heapq.heappop(self._heap)[1])
            if job is not None and job.ending is None:
                late.append(job)
        return late

    def next(self) -> float | None:
        """The first deadline of a call that has not ended."""
        while self._heap and self._heap[0][1] not in self._jobs:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def tidy(self) -> None:
        """A call has ended: forget those that have, if they are many."""
        if len(self._heap) > max(_FEW, 2 * len(self._jobs)):
            self._heap = [(deadline, request) for deadline, request in self._heap if request in self._jobs]
            heapq.heapify(self._heap)

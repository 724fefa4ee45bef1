"""The calls that wait or run and the last ones that have ended, as reports: who asked, and where the time went.

Law: reads the calls, and changes none. What it keeps of calls that have ended is bounded, and holds no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from llmaas.calls import Done
from llmaas.clock import Clock
from llmaas.errors import LlmaasError
from llmaas.records import AppId, RequestId, RequestInfo, RequestSpan, Tier
from llmaas.service.call import Call
from llmaas.service.succession import may_succeed

N_ENDED = 256
"""Calls that have ended and are still reported."""
_FROM = {Tier.POOL: "pool", Tier.DISK: "disk"}


class RequestLog:
    """``calls``: those that wait or run; ``ended`` is to be told of each that has ended. For one event loop."""

    def __init__(self, calls: Mapping[RequestId, Call], clock: Clock) -> None:
        self._calls, self._clock = calls, clock
        self._ended = deque[RequestInfo](maxlen=N_ENDED)

    def ended(self, call: Call, outcome: Done | LlmaasError) -> None:
        """The call has this reply."""
        how = outcome.reason.value if isinstance(outcome, Done) else outcome.code
        self._ended.append(self._info(call, how))

    def after(self, app: AppId | None, number: int, last: int | None = None) -> Iterator[tuple[int, RequestInfo]]:
        """An app's calls, or everyone's, with numbers above ``number``, in their order; of these the ``last`` so
        many, at least one."""
        ended = [info for info in self._ended if info.call > number and app in (None, info.app)]
        now = [call for call in self._calls.values() if call.id > number and app in (None, call.live.row.app)]
        found: list[RequestInfo | Call] = sorted([*ended, *now], key=_number)
        for each in found if last is None else found[-last:]:
            yield _number(each), each if isinstance(each, RequestInfo) else self._info(each)

    def _info(self, call: Call, outcome: str = "") -> RequestInfo:
        now, row = self._clock.now(), call.live.row
        op = "hint" if call.hint else "generate" if call.spec.generation else "append"
        state = "ended" if outcome else "waiting" if call.progress.admitted is None else "running"
        return RequestInfo(
            call=call.id,
            app=row.app,
            context=row.id,
            name=row.name,
            op=op,
            priority=call.control.priority,
            state=state,
            submitted=self._clock.wall() - (now - call.submitted),
            spans=tuple(_spans(call, now if outcome else None)),
            n_prompt=call.pending.n_prompt,
            n_generated=len(call.answer.drawn),
            n_paused=call.progress.n_paused,
            may_move=state == "running" and may_succeed(call),
            outcome=outcome,
        )


def _number(each: RequestInfo | Call) -> int:
    return each.call if isinstance(each, RequestInfo) else each.id


def _spans(call: Call, ended: float | None) -> Iterable[RequestSpan]:
    """Where the call's time went so far; ``ended``: when it got its reply. Spans of a call may overlap: chunks are
    loaded while others are computed. None ends before it begins, or after the reply: a call that is given up may have
    a step or a load that other threads end later."""
    progress, answer, began = call.progress, call.answer, call.submitted

    def span(name: str, start: float, end: float | None, tokens: int = 0) -> RequestSpan:
        if ended is not None:
            start, end = min(start, ended), ended if end is None else min(end, ended)
        return RequestSpan(name, (start - began) * 1e3, None if end is None else (end - began) * 1e3, tokens)

    yield span("queued", began, progress.admitted)
    for load in progress.loads:
        yield span(_FROM.get(load.tier, load.tier.name.lower()), load.began, load.ended, load.tokens)
    switched, first = progress.switched, progress.first_step
    recomputed = progress.sources.recomputed if progress.sources else 0
    # A call that was paused and came back may have recomputed after its prefill had begun: that has no span of its own.
    if first is not None and (switched is None or (recomputed and first <= switched)):
        yield span("recompute", first, switched, recomputed)
    if switched is not None and not call.hint:
        yield span("prefill", switched, answer.first_drawn, call.pending.n_prompt)
    drawn, last = answer.first_drawn, answer.last_token
    if drawn is not None and last is not None:
        yield span("decode", drawn, last if ended is not None else None, answer.n_drawn)
        if ended is not None:
            yield span("commit", last, ended)

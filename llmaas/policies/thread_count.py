"""How many threads the next steps of the engine should use, by how long the last ones took.

Law: it hears durations and nothing else, so what it decides does not depend on why a step was slow. Two rules. It falls
back at once: a cumulative sum of slowness (CUSUM, Page 1954) that runs over leads to a few steps with fewer threads,
and whichever count was faster stays. It looks around at little cost: now and then a few steps run with more or fewer
threads, and what these lose is paid out of a budget that grows with time (by 2 % of it upward, 0.2 % downward).

Why it is needed: llama.cpp's threads meet some 900 times a token and spin while they wait, so one that shares its core
with another process holds up all others: two threads are then many times slower than one.
"""

from __future__ import annotations

from collections.abc import Hashable

_SLACK = 0.3
"""Slowness that is not counted: steps differ by so much on a quiet machine."""
_ALARM = 4.0
"""Sum of what steps took beyond that, in steps, that is an alarm; doubled by each false one."""
_LARGEST_ALARM = 64.0
_LOOK_STEPS = 3
_HOPELESS = 1.5
"""A look ends with a step that takes so many times what it should beat."""
_BETTER = 0.95
"""Share of the time that another number of threads must need to be kept."""
_MAY_LOSE_UP, _MAY_LOSE_DOWN = 0.02, 0.002
"""Share of all time that looks may lose. Down is rarely worth a look: what makes it so raises an alarm."""
_SAVED_UP_S, _SAVED_DOWN_S = 0.1, 0.05
"""What a budget holds at most, and at first."""
_SOONEST_S = 0.25
"""Seconds of computing between two looks."""
_FASTER, _SLOWER = 0.2, 0.02
"""How much of a step's difference is learned. Slowly where it is slower, or a busy machine would become the measure."""


class ThreadCount:
    """``threads`` is how many the next step should use, 1 .. ``most``. One for decoding, one for prefill.

    With ``curious`` the first look down may cost what it will, a step or three: a daemon that starts on a busy machine
    has no quiet pace to be alarmed by.
    """

    def __init__(self, most: int, *, curious: bool = False) -> None:
        self.most = self.threads = most
        self.changes = 0
        """How often another number was found better."""
        self._pace: dict[Hashable, float] = {}
        """Seconds of a step of each kind, with as many threads as are used now."""
        self._sum = 0.0
        self._slow, self._n_slow = 0.0, 0
        """Steps since the sum was last zero: what they took together, in multiples of their pace, and how many."""
        self._alarm = _ALARM
        self._look: _Look | None = None
        self._stride = 1
        """How far the next look goes in the direction of the last one that found something; negative: down."""
        self._time = 0.0
        """Seconds of computing heard of."""
        self._curious = curious
        self._next_look = _SOONEST_S
        self._up, self._down = _Budget(_MAY_LOSE_UP, _SAVED_UP_S), _Budget(_MAY_LOSE_DOWN, _SAVED_DOWN_S)

    @property
    def looking(self) -> bool:
        """Whether the next steps try another number of threads."""
        return self._look is not None

    def observe(self, kind: Hashable, seconds: float) -> int:
        """The number of threads for the next step; the last one was of ``kind`` and took ``seconds`` with ``threads``.

        Steps of one kind take about as long on a quiet machine: as many tokens that look back about as far.
        """
        self._time += seconds
        self._up.earn(seconds)
        self._down.earn(seconds)
        pace = self._pace.get(kind)
        if self.most == 1 or seconds <= 0.0:
            return self.threads
        if self._look is not None:
            self._judge(self._look, kind, seconds, pace)
        elif pace is None:
            self._pace[kind] = seconds
        else:
            self._weigh(kind, seconds, pace)
        return self.threads

    # -- steps with the number of threads that is in use

    def _weigh(self, kind: Hashable, seconds: float, pace: float) -> None:
        slowness = seconds / pace
        self._pace[kind] = pace + (_FASTER if slowness < 1.0 else _SLOWER) * (seconds - pace)
        self._sum += slowness - 1.0 - _SLACK
        if self._sum <= 0.0:
            self._calm()
            self._look_around(pace)
            return
        self._slow += slowness
        self._n_slow += 1
        if self._sum >= self._alarm:
            self._begin(-1, to_beat=self._slow / self._n_slow, alarmed=True)

    def _calm(self) -> None:
        self._sum, self._slow, self._n_slow = 0.0, 0.0, 0

    def _look_around(self, pace: float) -> None:
        if self._time < self._next_look:
            return
        if self.threads < self.most and self._up.left > 0.0:
            self._begin(1, to_beat=1.0)
        elif self.threads > 1 and (self._curious or self._down.left >= self._price_down(pace)):
            self._curious = False
            self._begin(-1, to_beat=1.0)

    def _price_down(self, pace: float) -> float:
        """Seconds that a look down loses where all threads have a core. (What one up loses, nobody knows before.)"""
        return _LOOK_STEPS * pace * (self.threads / self._goal(-1) - 1.0)

    def _goal(self, way: int) -> int:
        """Where the next look in a direction goes."""
        stride = self._stride if self._stride * way > 0 else way
        return min(self.most, max(1, self.threads + stride))

    def _begin(self, way: int, *, to_beat: float, alarmed: bool = False) -> None:
        if self.threads + way < 1:  # an alarm with one thread: the machine is slower than it was
            self._end_alarm(to_beat)
            return
        there = self._goal(way)
        self._look = _Look(self.threads, there, to_beat, alarmed)
        self.threads = there

    # -- steps of a look

    def _judge(self, look: _Look, kind: Hashable, seconds: float, pace: float | None) -> None:
        if pace is None:  # nothing to compare with
            self._back(look)
            return
        look.took.append(seconds / pace)
        mean = sum(look.took) / len(look.took)
        if look.took[-1] > _HOPELESS * look.to_beat or (
            len(look.took) == _LOOK_STEPS and mean > _BETTER * look.to_beat
        ):
            lost = max(0.0, sum(each - look.to_beat for each in look.took)) * pace
            if not look.alarmed:
                (self._up if look.there > look.here else self._down).left -= lost
            self._back(look)
        elif len(look.took) == _LOOK_STEPS:
            self._stay(look, kind, pace * mean, pace)

    def _stay(self, look: _Look, kind: Hashable, seconds: float, pace: float) -> None:
        """What was looked at is better."""
        self._up.left -= (self._slow - self._n_slow) * pace  # by having too many, or having them too long
        self._next_look = self._time + _SOONEST_S
        self._stride = 2 * (look.there - look.here)
        self._pace = {kind: seconds}
        self._look, self._alarm = None, _ALARM
        self._calm()
        self.changes += 1

    def _back(self, look: _Look) -> None:
        self.threads, self._look, self._stride = look.here, None, 1
        self._next_look = self._time + _SOONEST_S
        if look.alarmed:
            self._end_alarm(look.to_beat)

    def _end_alarm(self, slowness: float) -> None:
        """The steps are slower, and fewer threads do not help: that is the pace now."""
        for kind in self._pace:
            self._pace[kind] *= slowness
        self._alarm = min(2 * self._alarm, _LARGEST_ALARM)
        self._calm()


class _Budget:
    """Seconds that may be lost: a share of all time, saved up to ``most``. Debts are paid before the next look."""

    __slots__ = ("left", "most", "share")

    def __init__(self, share: float, most: float) -> None:
        self.share, self.most, self.left = share, most, most

    def earn(self, seconds: float) -> None:
        self.left = min(self.most, self.left + self.share * seconds)


class _Look:
    """A few steps with ``there`` threads instead of ``here``; ``took``: each in multiples of its pace with ``here``."""

    __slots__ = ("alarmed", "here", "there", "to_beat", "took")

    def __init__(self, here: int, there: int, to_beat: float, alarmed: bool) -> None:
        self.here, self.there, self.to_beat, self.alarmed = here, there, to_beat, alarmed
        self.took: list[float] = []

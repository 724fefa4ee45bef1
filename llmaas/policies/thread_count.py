"""How many threads the next steps of the engine should use, judged by how long the last steps took.

Law: pure; it is told how long steps took and, where the system knows it, how many CPUs there was room on. Three rules:

* It falls back at once. A cumulative sum of slowness (CUSUM, Page 1954) that exceeds a threshold raises an alarm. An
  alarm leads to a trial: a few steps with fewer threads. Whichever number of threads was faster stays.
* It explores at little cost. Now and then a few steps run with more or fewer threads. The time that such trials lose is
  paid from a budget that grows with time (by 2 % of it for trials upward, 0.2 % downward).
* Where there is room for more threads again, they are used at once; without room trials upward are rare. If fewer
  were found better though there is room for more, these are tried again soon: what held them up may be over.

Why it is needed: llama.cpp's threads meet some 900 times a token and spin while they wait. A thread that shares its
core with another process holds up all others, so two threads are then many times slower than one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

_SLACK = 0.3
"""Slowness that is not counted: steps differ by this share of their pace on a quiet machine."""
_ALARM = 4.0
"""Sum of slowness beyond that, in steps, that raises an alarm. Each false alarm doubles it."""
_LARGEST_ALARM = 64.0
_TRIAL_STEPS = 3
_HOPELESS = 1.5
"""A trial ends early with a step that takes so many times what it should beat."""
_BETTER = 0.95
"""Another number of threads is kept if its steps take at most this share of the time to beat."""
_MAY_LOSE_UP, _MAY_LOSE_DOWN = 0.02, 0.002
"""Share of all time that trials may lose. A trial downward is rarely worth it: what makes fewer threads better raises
an alarm as well."""
_SAVED_UP_S, _SAVED_DOWN_S = 0.1, 0.05
"""Seconds that a budget holds at most; that for trials upward at first, too."""
_DEBT_S = 0.01
"""What a trial upward seems to have cost as soon as threads lack CPUs: it waits for 5 s of computing. What was saved
while there was room would else be spent at once where it is known to be lost: a tenth of an answer of one second."""
_SOONEST_S = 0.25
"""Seconds of computing between two trials."""
_FITS, _CROWDED = 0.75, 0.5
"""A thread more fits where so much of a CPU is free for it; with less than _CROWDED free, trials upward are to lose a
tenth as much time. A thread of those in use that lacks so much of a CPU holds up the others."""
_SOONER = 0.25
"""Part of the sum of slowness that raises an alarm while threads in use lack CPUs."""
_FASTER, _SLOWER = 0.2, 0.02
"""How much of a step's difference to its pace is learned. It is learned slowly where the step was slower: otherwise a
busy machine would become the norm."""


class ThreadCount:
    """``threads`` (1 .. ``most``) is how many the next step should use. Use one for decoding and one for prefill.

    With ``curious`` the first trial downward may cost more than the budget holds, a step to three: a daemon that starts
    on a busy machine knows no quiet pace that could raise an alarm.
    """

    def __init__(self, most: int, *, curious: bool = False) -> None:
        self.most = self.threads = most
        self.changes = 0
        """How often another number of threads was found better."""
        self._pace: dict[Hashable, float] = {}
        """Seconds of a step of each kind, with the present number of threads."""
        self._sum = 0.0
        """The cumulative sum of slowness."""
        self._slow, self._n_slow = 0.0, 0
        """Steps since the sum was last zero: their time in multiples of their pace, and their number."""
        self._alarm = _ALARM
        self._trial: _Trial | None = None
        self._stride = 1
        """How far the next trial goes in the direction of the last successful one; negative: downward."""
        self._time = 0.0
        """Seconds of computing so far."""
        self._curious = curious
        self._next_trial = _SOONEST_S
        self._up = _Budget(_MAY_LOSE_UP, _SAVED_UP_S, left=_SAVED_UP_S)
        self._down = _Budget(_MAY_LOSE_DOWN, _SAVED_DOWN_S, left=0.0)
        self._room: float | None = None
        """CPUs that there was room on when it was last looked; None: not known."""
        self._looked = 0.0
        """What ``_time`` was then."""
        self._patience, self._doubt_at = _SOONEST_S, math.inf
        """Looks after ``_doubt_at`` that show room for more threads are a reason to try them; see ``_doubts``."""

    @property
    def in_trial(self) -> bool:
        """Whether the next steps try another number of threads."""
        return self._trial is not None

    def see_room(self, cpus: float) -> None:
        """The process could have had so many CPUs of late: those it used, and those that nobody used.

        Threads for which there is room again are used at once: a trial would need steps of a kind that is known, and
        what was lost while they had no room is no reason to wait. If there is none after all, their steps are slow.
        """
        needed = self.threads + _FITS
        if cpus >= needed and self._lacks(needed) and self.threads < self.most:
            self._grow(min(self.most, int(cpus + 1 - _FITS)))
        lacked = self._up_is_vain
        self._room, self._looked = cpus, self._time
        if not lacked and self._up_is_vain:
            self._up.left = min(self._up.left, -_DEBT_S)

    @property
    def _up_is_vain(self) -> bool:
        """Whether there was no room for one more thread, or for all that there may be."""
        return self._lacks(min(self.threads + _CROWDED, self.most - 1 + _FITS))

    def _lacks(self, cpus: float) -> bool:
        """Whether there was room on fewer CPUs than that when it was last looked."""
        return self._room is not None and self._room < cpus

    def _grow(self, threads: int) -> None:
        """Use more threads without a trial. Until they are measured, their steps are said to take as much less."""
        here = self._trial.here if self._trial is not None else self.threads
        self._pace = {kind: pace * here / threads for kind, pace in self._pace.items()}
        self.threads, self._trial, self._stride = threads, None, 1
        self._up.left = max(self._up.left, 0.0)
        self._next_trial = self._time + _SOONEST_S
        self._alarm = _ALARM
        self._reset_sum()
        self.changes += 1

    def observe(self, kind: Hashable, seconds: float) -> int:
        """The last step was of ``kind`` and took ``seconds`` with ``threads``. Returns the threads for the next step.

        Steps of one kind must take about as long on a quiet machine: as many tokens, over about as long a context.
        """
        self._time += seconds
        self._up.earn(seconds * (0.1 if self._up_is_vain else 1.0))
        self._down.earn(seconds)
        pace = self._pace.get(kind)
        if self.most == 1 or seconds <= 0.0:
            return self.threads
        if self._trial is not None:
            self._judge(self._trial, kind, seconds, pace)
        elif pace is None:
            self._pace[kind] = seconds
        else:
            self._weigh(kind, seconds, pace)
        return self.threads

    # -- steps outside of trials

    def _weigh(self, kind: Hashable, seconds: float, pace: float) -> None:
        """Learn the pace, and add the step's slowness to the sum."""
        slowness = seconds / pace
        self._pace[kind] = pace + (_FASTER if slowness < 1.0 else _SLOWER) * (seconds - pace)
        self._sum += slowness - 1.0 - _SLACK
        if self._sum <= 0.0:
            self._reset_sum()
            self._explore(pace)
            return
        self._slow += slowness
        self._n_slow += 1
        if self._sum >= self._alarm * (_SOONER if self._lacks(self.threads - _CROWDED) else 1.0):
            self._begin(-1, to_beat=self._slow / self._n_slow, alarmed=True)

    def _reset_sum(self) -> None:
        self._sum, self._slow, self._n_slow = 0.0, 0.0, 0

    def _explore(self, pace: float) -> None:
        """Begin a trial if one is due and paid for."""
        if self._time < self._next_trial:
            return
        if self.threads < self.most and (self._up.left > 0.0 or self._doubts()):
            self._patience *= 4.0
            self._doubt_at = self._time + self._patience
            self._begin(1, to_beat=1.0)
        elif self.threads > 1 and (self._curious or self._down.left >= self._price_down(pace)):
            self._curious = False
            self._begin(-1, to_beat=1.0)

    def _doubts(self) -> bool:
        """Whether fewer threads were found better though there is room for more: what held more up may have been over
        in a moment. Then a trial is due though none is paid for, and if it fails, another after four times as long."""
        return self._doubt_at < self._looked and not self._lacks(self.threads + _FITS)

    def _price_down(self, pace: float) -> float:
        """Seconds that a trial downward loses if every thread has a core. (What one upward loses is unknown before.)"""
        return _TRIAL_STEPS * pace * (self.threads / self._goal(-1) - 1.0)

    def _goal(self, way: int) -> int:
        """Threads of the next trial in a direction (1: up, -1: down)."""
        stride = self._stride if self._stride * way > 0 else way
        return min(self.most, max(1, self.threads + stride))

    def _begin(self, way: int, *, to_beat: float, alarmed: bool = False) -> None:
        if self.threads + way < 1:  # an alarm with one thread: the machine is slower than it was
            self._end_alarm(to_beat)
            return
        there = self._goal(way)
        self._trial = _Trial(self.threads, there, to_beat, alarmed)
        self.threads = there

    # -- steps of a trial

    def _judge(self, trial: _Trial, kind: Hashable, seconds: float, pace: float | None) -> None:
        if pace is None:  # nothing to compare with
            self._revert(trial)
            return
        trial.took.append(seconds / pace)
        mean = sum(trial.took) / len(trial.took)
        complete = len(trial.took) == _TRIAL_STEPS
        if trial.took[-1] > _HOPELESS * trial.to_beat or (complete and mean > _BETTER * trial.to_beat):
            lost = max(0.0, sum(each - trial.to_beat for each in trial.took)) * pace
            if not trial.alarmed:
                (self._up if trial.there > trial.here else self._down).left -= lost
            self._revert(trial)
        elif complete:
            self._adopt(trial, kind, pace * mean, pace)

    def _adopt(self, trial: _Trial, kind: Hashable, seconds: float, pace: float) -> None:
        """Keep the number of threads that was tried: it is better."""
        self._up.left -= (self._slow - self._n_slow) * pace  # lost by having too many threads, or having them too long
        self._next_trial = self._time + _SOONEST_S
        self._patience = _SOONEST_S / 2
        self._doubt_at = self._time + self._patience
        self._stride = 2 * (trial.there - trial.here)
        self._pace = {kind: seconds}
        self._trial, self._alarm = None, _ALARM
        self._reset_sum()
        self.changes += 1

    def _revert(self, trial: _Trial) -> None:
        self.threads, self._trial, self._stride = trial.here, None, 1
        self._next_trial = self._time + _SOONEST_S
        if trial.alarmed:
            self._end_alarm(trial.to_beat)

    def _end_alarm(self, slowness: float) -> None:
        """The alarm was false: steps are slower and fewer threads do not help, so this is the pace from now on."""
        for kind in self._pace:
            self._pace[kind] *= slowness
        self._alarm = min(2 * self._alarm, _LARGEST_ALARM)
        self._reset_sum()


class _Budget:
    """Seconds that trials may lose: a ``share`` of all time, saved up to ``most``. A debt must be earned back first."""

    __slots__ = ("left", "most", "share")

    def __init__(self, share: float, most: float, left: float) -> None:
        self.share, self.most, self.left = share, most, left

    def earn(self, seconds: float) -> None:
        self.left = min(self.most, self.left + self.share * seconds)


class _Trial:
    """A few steps with ``there`` threads instead of ``here``.

    ``took``: the time of each, in multiples of its pace with ``here`` threads; ``to_beat``: in the same unit.
    """

    __slots__ = ("alarmed", "here", "there", "to_beat", "took")

    def __init__(self, here: int, there: int, to_beat: float, alarmed: bool) -> None:
        self.here, self.there, self.to_beat, self.alarmed = here, there, to_beat, alarmed
        self.took: list[float] = []

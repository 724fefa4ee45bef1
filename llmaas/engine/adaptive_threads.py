"""Runs an engine's steps with as many threads as the machine has room for.

Law: on the engine's thread only. It measures steps and the room for threads, and sets threads;
``policies.thread_count`` decides how many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from llmaas.engine.base import BatchItem, Engine, Halt, Row
from llmaas.engine.row_pipe import Telling
from llmaas.policies.thread_count import ThreadCount

_REACH = 512
"""Steps that look back on fewer tokens than this are of one kind; above it, those within a factor of two."""
_ROOM_EVERY_S = 0.25
"""How often it is looked, at most, on how many CPUs there is room."""
_IDLE_S = 1.0
"""After so long without a step little is known of who else computes: not enough to keep threads apart, which costs a
tenth of a prefill where nobody does."""
_OTHERS = 0.2
"""CPUs that others may take of those that threads need, while the threads spin in prefill."""
_FEW = 1.05
"""CPUs that others take at most where threads are kept from sharing one in prefill. Where there are more programs than
that, threads lose more by waiting for a CPU of their own."""
_CROWDED = 0.5
"""CPUs that others take at least of those that threads could use, where there is a crowd."""


class AdaptiveThreads:
    """``step`` and ``steps`` of ``engine``, with 1 .. ``most`` threads. ``now`` returns the time in seconds, ``room``
    the CPUs that this process could have had since it was last called, or None if that is not known. ``tell`` is told
    the number of threads before steps that have another one.

    Decode and prefill each have their own number of threads, since in prefill threads wait for each other less often.
    In prefill they spin while they wait if each had a CPU to itself of late; beside one busy program, more or less,
    they are kept from sharing a CPU.
    """

    def __init__(
        self,
        engine: Engine,
        most: int,
        now: Callable[[], float],
        room: Callable[[], float | None],
        tell: Callable[[int], None] = lambda n_threads: None,
    ) -> None:
        self._engine, self._now, self._room = engine, now, room
        self._looked = self._ended = now()
        self._at_work = False
        """Whether the engine was at work when it was last looked."""
        self.decode, self.prefill = ThreadCount(most, curious=True), ThreadCount(most)
        self._tell = tell
        self._in_use = most if most > 1 else 0, False, False  # one that is always alone is told once
        self._seen: float | None = None
        """CPUs that there was room on when it was last looked; None: not known."""

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        """See ``Engine.step``. A step that fails is not measured."""
        n_tokens = sum(len(item.tokens) for item in items)
        count = self.decode if n_tokens == len(items) else self.prefill
        self._use(count)
        begin = self._now()
        drawn = self._engine.step(items, adapter, draw_s=draw_s)
        self._ended = self._now()
        count.observe(_kind(items, n_tokens), self._ended - begin)
        return drawn

    def steps(
        self,
        items: Sequence[BatchItem],
        most: int,
        seconds: float,
        halt: Halt,
        adapter: str = "",
        telling: Telling | None = None,
    ) -> Sequence[Row]:
        """See ``Engine.steps``. While another number of threads is tried, steps run one by one."""
        self._use(self.decode)
        begin = self._now()
        rows = self._engine.steps(items, 1 if self.decode.in_trial else most, seconds, halt, adapter, telling)
        self._ended = self._now()
        each = (self._ended - begin) / len(rows)
        kind = _kind(items, len(items))
        for _ in rows:
            self.decode.observe(kind, each)
            if self.decode.in_trial:  # a trial has begun: these steps did not have its number of threads
                break
        return rows

    def _use(self, count: ThreadCount) -> None:
        if count.most > 1 and (elapsed := self._now() - self._looked) >= _ROOM_EVERY_S:
            self._looked += elapsed
            self._at_work = self._looked - self._ended < _IDLE_S
            if (cpus := self._room()) is not None:
                self._seen = cpus
                self.decode.see_room(cpus)
                self.prefill.see_room(cpus)
        free = -math.inf if count is self.decode or self._seen is None else self._seen - count.threads
        spin, apart = free >= -_OTHERS, self._at_work and -_FEW <= free < -_OTHERS
        if (wanted := (count.threads, spin, apart)) != self._in_use:
            self._tell(count.threads)
            self._engine.set_threads(count.threads, spin=spin, apart=apart)
            self._in_use = wanted

    @property
    def crowded(self) -> bool:
        """Whether other programs took CPUs of late that this one could have used."""
        return self._seen is not None and self._seen <= self.decode.most - _CROWDED

    def snapshot(self) -> dict[str, int]:
        """For the metrics: threads of decode and prefill, and how often these numbers changed outside of trials."""
        return {
            "most": self.decode.most,
            "decode": self.decode.threads,
            "prefill": self.prefill.threads,
            "changes": self.decode.changes + self.prefill.changes,
        }


def _kind(items: Sequence[BatchItem], n_tokens: int) -> Hashable:
    """Steps of one kind take about the same time: as many sequences, about as many tokens, about the same reach."""
    reach = sum(item.pos * len(item.tokens) for item in items) // n_tokens
    return len(items), n_tokens.bit_length(), (reach // _REACH).bit_length()

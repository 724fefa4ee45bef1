"""Steps of an engine, with as many threads as the machine has room for.

Law: on the engine's thread only. It measures steps and sets threads; ``policies.thread_count`` decides how many.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from llmaas.engine.base import BatchItem, Engine, Halt
from llmaas.policies.thread_count import ThreadCount

_REACH = 512
"""Tokens that steps of one kind look back on differ by less than this, or less than twofold."""


class AdaptiveThreads:
    """``step`` runs ``engine.step`` with 1 .. ``most`` threads; ``now`` tells seconds. Decode and prefill have numbers
    of their own, since prefill meets at barriers less often."""

    def __init__(self, engine: Engine, most: int, now: Callable[[], float]) -> None:
        self._engine, self._now = engine, now
        self.decode, self.prefill = ThreadCount(most, curious=True), ThreadCount(most)
        self._set = most

    def step(self, items: Sequence[BatchItem], adapter: str = "") -> list[int | None]:
        """As ``Engine.step``; a step that fails teaches nothing."""
        n_tokens = sum(len(item.tokens) for item in items)
        count = self.decode if n_tokens == len(items) else self.prefill
        self._use(count)
        begin = self._now()
        drawn = self._engine.step(items, adapter)
        count.observe(_kind(items, n_tokens), self._now() - begin)
        return drawn

    def steps(
        self, items: Sequence[BatchItem], most: int, seconds: float, halt: Halt, adapter: str = ""
    ) -> list[list[int]]:
        """As ``Engine.steps``; a look at another number of threads takes them one by one."""
        self._use(self.decode)
        begin = self._now()
        rows = self._engine.steps(items, 1 if self.decode.in_trial else most, seconds, halt, adapter)
        each = (self._now() - begin) / len(rows)
        kind = _kind(items, len(items))
        for _ in rows:
            self.decode.observe(kind, each)
            if self.decode.in_trial:  # the next steps will
                break
        return rows

    def _use(self, count: ThreadCount) -> None:
        if count.threads != self._set:
            self._engine.set_threads(count.threads)
            self._set = count.threads

    def snapshot(self) -> dict[str, int]:
        """Threads in use, and how often their number changed for good."""
        return {
            "most": self.decode.most,
            "decode": self.decode.threads,
            "prefill": self.prefill.threads,
            "changes": self.decode.changes + self.prefill.changes,
        }


def _kind(items: Sequence[BatchItem], n_tokens: int) -> Hashable:
    reach = sum(item.pos * len(item.tokens) for item in items) // n_tokens
    return len(items), n_tokens.bit_length(), (reach // _REACH).bit_length()

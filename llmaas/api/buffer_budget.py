"""The bytes that connections hold for their peers, all together and for each app.

Law: values only. Who finds no room waits, first come first served, and is called when there is room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Waiting:
    app: str
    nbytes: int
    granted: Callable[[], None]


class BufferBudget:
    """``total`` and ``per_app`` are bytes. Something that alone exceeds them has room when nothing else is held.

    >>> budget = BufferBudget(total=100, per_app=60)
    >>> budget.take("mail", 50), budget.take("mail", 20), budget.take("home", 20)
    (True, False, True)
    """

    def __init__(self, total: int, per_app: int) -> None:
        self._total, self._per_app = total, per_app
        self.used = 0
        self._held: Counter[str] = Counter()
        self._excess: Counter[str] = Counter()
        """By how much one thing that was held alone exceeded its app's share, while the app holds more than that."""
        self._waiting: list[_Waiting] = []

    def held(self, app: str) -> int:
        return self._held[app]

    def in_share(self, app: str) -> bool:
        """Whether the app holds no more than its share, or one thing that is larger than that by itself."""
        return self._held[app] <= self._per_app + self._excess[app]

    def take(self, app: str, nbytes: int) -> bool:
        """Hold ``nbytes`` more; False if there is no room for them."""
        if not self._has_room(app, nbytes):
            return False
        self.take_anyway(app, nbytes)
        return True

    def grow(self, app: str, held: int, nbytes: int) -> bool:
        """Hold ``nbytes``, if that is more, where ``held`` are held already; False if there is no room for them."""
        if nbytes <= held:
            return True
        mine, used = self._held[app] - held, self.used - held
        if (mine and mine + nbytes > self._per_app) or (used and used + nbytes > self._total):
            return False
        self.take_anyway(app, nbytes - held)
        if not mine and nbytes > self._per_app:
            self._excess[app] = nbytes - self._per_app
        return True

    def take_anyway(self, app: str, nbytes: int) -> None:
        """Hold ``nbytes`` more, room or not: what is there already, such as replies that a peer does not read."""
        if nbytes:
            self.used += nbytes
            self._held[app] += nbytes

    def give_back(self, app: str, nbytes: int) -> None:
        self.used -= nbytes
        self._held[app] -= nbytes
        if self._held[app] <= self._per_app:
            del self._excess[app]
        if not self._held[app]:
            del self._held[app]
        self._serve()

    @property
    def crowded(self) -> bool:
        """Whether somebody waits only because others hold all that there is."""
        return any(self._has_share(waiting) for waiting in self._waiting)

    def wait(self, app: str, nbytes: int, granted: Callable[[], None]) -> object:
        """Call ``granted`` when ``nbytes`` are held for the app; 0 waits until the app holds no more than its share.
        Returns what ``stop_waiting`` takes."""
        waiting = _Waiting(app, nbytes, granted)
        self._waiting.append(waiting)
        return waiting

    def stop_waiting(self, waiting: object) -> None:
        self._waiting = [w for w in self._waiting if w is not waiting]
        self._serve()

    def _has_room(self, app: str, nbytes: int) -> bool:
        if not nbytes:
            return self.in_share(app)
        mine = self._held[app]
        fits_app = not mine or mine + nbytes <= self._per_app
        return fits_app and (not self.used or self.used + nbytes <= self._total)

    def _serve(self) -> None:
        """Grant what fits. Who finds its app's share taken does not hold up other apps; who finds all taken does."""
        while (found := self._first_served()) is not None:
            self._waiting.remove(found)
            self.take_anyway(found.app, found.nbytes)
            found.granted()

    def _first_served(self) -> _Waiting | None:
        for waiting in self._waiting:
            if self._has_room(waiting.app, waiting.nbytes):
                return waiting
            if self._has_share(waiting):
                return None
        return None

    def _has_share(self, waiting: _Waiting) -> bool:
        mine = self._held[waiting.app]
        return not mine or mine + waiting.nbytes <= self._per_app

"""Which apps have slots, and how many more there are.

Law: what is granted is bounded, together and for each app; a slot exists only while it is granted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llmaas.errors import BadRequest, Busy
from llmaas.slots.end import SlotEnd
from llmaas.slots.layout import MOST_SLOTS, SlotLayout
from llmaas.slots.memory import make_slot


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """``count``: slots that there are at once, 0: none; ``nbytes``: of the two rings of each. Raises ValueError."""

    count: int = 0
    nbytes: int = 1 << 20

    def __post_init__(self) -> None:
        if not 0 <= self.count <= MOST_SLOTS:
            raise ValueError(f"there may be 0 to {MOST_SLOTS} slots, not {self.count}")
        _ = self.layout

    @property
    def layout(self) -> SlotLayout:
        return SlotLayout(self.nbytes // 2)

    @property
    def of_app(self) -> int:
        """Most of one app: half of them, so that there are some for others."""
        return max(1, self.count // 2)


NO_SLOTS = SlotSettings()


@dataclass(frozen=True, slots=True)
class GrantedSlot:
    """``fd`` is for the client, and to be closed when it was sent."""

    app: str
    generation: int
    layout: SlotLayout
    fd: int
    end: SlotEnd


class SlotGrants:
    """Of one daemon. What ``grant`` gives is to be given back by ``release``."""

    def __init__(self, settings: SlotSettings) -> None:
        self._settings = settings
        self._held = Counter[str]()
        self.granted = 0
        """How many slots were granted so far."""

    @property
    def in_use(self) -> int:
        return self._held.total()

    def grant(self, app: str, owner: int) -> GrantedSlot:
        """A slot for the app of the user ``owner``. Raises BadRequest if there are none here, Busy, MachineError."""
        settings, hint = self._settings, "Use the socket: it does all that a slot does."
        if not settings.count:
            raise BadRequest("this daemon has no slots", hint=f"{hint} Or have it serve with --slots 64.")
        if self._held[app] >= settings.of_app:
            raise Busy(f"the app {app} has {self._held[app]} slots already", hint=hint)
        if self.in_use >= settings.count:
            raise Busy(f"all {settings.count} slots are in use", hint=hint)
        layout, generation = settings.layout, self.granted + 1
        fd, memory = make_slot(layout, generation, owner)
        self.granted = generation
        self._held[app] += 1
        return GrantedSlot(app, generation, layout, fd, SlotEnd(memory, layout, service=True))

    def release(self, app: str) -> None:
        self._held[app] -= 1
        if not self._held[app]:
            del self._held[app]

"""Which apps have slots, and how many more there are.

Law: what is granted is bounded, together and for each app; a slot exists only while it is granted.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llmaas.errors import BadRequest, Busy
from llmaas.frozen import frozen
from llmaas.slots.end import SlotEnd
from llmaas.slots.layout import MOST_SLOTS, SlotLayout
from llmaas.slots.lent import LentMemories
from llmaas.slots.memory import make_slot, use_slot


@frozen
class SlotSettings:
    """``count``: slots that there are at once, 0: none; ``nbytes``: of the two rings of each. Raises ValueError."""

    count: int = 0
    nbytes: int = 1 << 20
    folder: Path | None = None
    """Of memory that is used in place of ``count`` times ``nbytes``: for clients on another kernel."""

    def __post_init__(self) -> None:
        if not 0 <= self.count <= MOST_SLOTS:
            raise ValueError(f"there may be 0 to {MOST_SLOTS} slots, not {self.count}")
        _ = self.layout

    @property
    def layout(self) -> SlotLayout:
        return SlotLayout(self.nbytes // 2)


NO_SLOTS = SlotSettings()


@frozen
class GrantedSlot:
    """``fd`` is for the client, and to be closed when it was sent; None: the host has it, of the memory ``device``."""

    app: str
    generation: int
    layout: SlotLayout
    end: SlotEnd
    fd: int | None = None
    device: int | None = None


class SlotGrants:
    """Of one daemon. What ``grant`` gives is to be given back by ``release``. Raises ConfigError."""

    def __init__(self, settings: SlotSettings) -> None:
        self._settings = settings
        self._lent = None if settings.folder is None else LentMemories(settings.folder)
        self._count = settings.count if self._lent is None else len(self._lent)
        self._held = Counter[str]()
        self.granted = 0
        """How many slots were granted so far."""

    @property
    def in_use(self) -> int:
        return self._held.total()

    def grant(self, app: str, owner: int) -> GrantedSlot:
        """A slot for the app of the user ``owner``. Raises BadRequest if there are none here, Busy, MachineError."""
        hint = "Use the socket: it does all that a slot does."
        if not self._count:
            raise BadRequest("this daemon has no slots", hint=f"{hint} Or have it serve with --slots 64.")
        if self._held[app] >= self.of_app:
            raise Busy(f"the app {app} has {self._held[app]} slots already", hint=hint)
        if self.in_use >= self._count:
            raise Busy(f"all {self._count} slots are in use", hint=hint)
        granted = self._made(app, owner) if self._lent is None else self._of_lent(self._lent, app, owner, hint)
        self.granted = granted.generation
        self._held[app] += 1
        return granted

    @property
    def of_app(self) -> int:
        """Most of one app: half of them, so that there are some for others."""
        return max(1, self._count // 2)

    def _made(self, app: str, owner: int) -> GrantedSlot:
        layout, generation = self._settings.layout, self.granted + 1
        fd, memory = make_slot(layout, generation, owner)
        return GrantedSlot(app, generation, layout, SlotEnd(memory, layout, service=True), fd)

    def _of_lent(self, lent: LentMemories, app: str, owner: int, hint: str) -> GrantedSlot:
        device, generation = lent.take(app, owner), self.granted + 1
        if device is None:
            raise Busy("no slot is left for this app: each is in use, or has been another app's", hint=hint)
        try:
            layout, memory = use_slot(lent.file(device), generation, owner)
        except BaseException:
            lent.give_back(device)
            raise
        return GrantedSlot(app, generation, layout, SlotEnd(memory, layout, service=True, far=True), device=device)

    def release(self, granted: GrantedSlot) -> None:
        """Its end has been closed."""
        if self._lent is not None and granted.device is not None:
            self._lent.give_back(granted.device)
        self._held[granted.app] -= 1
        if not self._held[granted.app]:
            del self._held[granted.app]

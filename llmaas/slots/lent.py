"""Memory that this daemon has been lent for slots, and cannot make anew: that of a virtual machine's devices.

Law: memory that an app was once given is given to no other app for as long as this daemon runs, for nobody can take a
mapping of it back; and one user's apps have half of it at most, however many names they use.

Rejected: one memory for all. Who has it mapped would read what the others say.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llmaas.errors import ConfigError
from llmaas.slots.layout import MOST_SLOTS


class LentMemories:
    """The files 0, 1, 2 ... of a folder. What ``take`` gives is to be given back. Raises ConfigError."""

    def __init__(self, folder: Path) -> None:
        names = sorted((each.name for each in folder.glob("*") if each.name.isdecimal()), key=int)
        if not 0 < len(names) <= MOST_SLOTS or names != [str(i) for i in range(len(names))]:
            raise ConfigError(
                f"slot_folder: {folder} must hold files 0, 1, 2 ..., at most {MOST_SLOTS}",
                hint="'llmaas vm run --slots 16' makes it in the guest; without it clients use the socket.",
            )
        self._files = [folder / name for name in names]
        self._app_of: list[str] = []
        """Whom each was given to, once and for all."""
        self._had_by = Counter[int]()
        """How many each user's apps were given."""
        self._out: set[int] = set()

    def __len__(self) -> int:
        return len(self._files)

    @property
    def of_user(self) -> int:
        """Most that the apps of one user are given."""
        return max(1, len(self) // 2)

    def take(self, app: str, user: int) -> int | None:
        """The number of a file for this app of this user; None if there is none for it."""
        mine = [i for i, whose in enumerate(self._app_of) if whose == app and i not in self._out]
        if mine:
            found = mine[0]
        elif len(self._app_of) < len(self) and self._had_by[user] < self.of_user:
            found = len(self._app_of)  # they are given in order
            self._app_of.append(app)
            self._had_by[user] += 1
        else:
            return None
        self._out.add(found)
        return found

    def file(self, number: int) -> Path:
        return self._files[number]

    def give_back(self, number: int) -> None:
        self._out.discard(number)

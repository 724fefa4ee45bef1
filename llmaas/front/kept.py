"""Copies of the sockets that a model's process serves: what becomes of these connections if it is killed.

Law: nothing is read from them here, and nothing is written before the process has ended. Each connection is in one of
the lists of ``Left``, or was closed because the process may have sent part of a frame.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from llmaas.api.handed import N_MARKS, ConnectionMarks, HandedConnection, Mark, marks_memory


@dataclass(slots=True)
class Left:
    """The connections of a process that has ended."""

    unseen: list[HandedConnection] = field(default_factory=list)
    """It has not looked at them."""
    at_rest: list[HandedConnection] = field(default_factory=list)
    in_use: list[HandedConnection] = field(default_factory=list)
    """Requests ran, or a part of one had been read; replies were sent whole."""


class KeptConnections:
    """Of one process, which gets a copy of ``fd``, the memory of the marks. ``most``: how many. Raises OSError."""

    def __init__(self, most: int = N_MARKS) -> None:
        self.fd = marks_memory()
        try:
            self._marks = ConnectionMarks(self.fd)
        except BaseException:
            os.close(self.fd)
            raise
        self._free = list(range(most))
        self._ended = False
        self._kept: dict[int, HandedConnection] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, handed: HandedConnection) -> tuple[int | None, int]:
        """Its number, and a descriptor for the process; None if it cannot be kept: then that is its only one."""
        try:
            number = self._free.pop()
        except IndexError:
            return None, handed.sock.detach()
        try:
            fd = os.dup(handed.sock.fileno())
        except OSError:  # no descriptor is left for a copy
            self._free.append(number)
            return None, handed.sock.detach()
        self._marks.memory[number] = Mark.NEW
        self._kept[number] = handed
        return number, fd

    def forget(self, number: int | None) -> None:
        """The process has closed the connection, or handed it back."""
        if number is not None and (handed := self._kept.pop(number, None)) is not None:
            handed.sock.close()
            self._free.append(number)

    def end(self) -> Left:
        """The process has ended: what it has left. Of no use after it; a second time nothing is left."""
        left = Left()
        if self._ended:
            return left
        self._ended = True
        for number, handed in self._kept.items():
            match self._marks[number]:
                case Mark.NEW:
                    left.unseen.append(handed)
                case Mark.AT_REST:
                    left.at_rest.append(handed)
                case Mark.IN_USE:
                    left.in_use.append(handed)
                case Mark.MID_FRAME:  # what would be sent now would be taken for the rest of that frame
                    handed.sock.close()
        self._kept.clear()
        self._marks.close()
        os.close(self.fd)
        return left

"""The files of a model while it is served: llama.cpp maps them into memory, so a change of a file changes the weights.

Law: what was computed is used only if, after that, the files were still those that were loaded.

A file that is replaced, deleted or renamed stays as it is for those who have it open, and may. One that is cut or
written in place is noticed by its size and its time of modification. Where only the time of change differs, as after
a rename or ``chmod``, the content is compared by samples.

Rejected: loading without a map. It takes the model's size in memory that the system cannot take back, and the start
takes as long as reading all of the file. Rejected: watching with inotify, which says so too late.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llmaas.config.models import parts_of
from llmaas.engine.llama.map_guard import Faults, MapGuard
from llmaas.engine.llama.weights_memory import drop_pages
from llmaas.errors import ModelChanged, ModelUnreadable
from llmaas.regular_file import open_regular

_HEAD_BYTES = 8 << 20
_SAMPLES = 256
_SAMPLE_BYTES = 4096


class _State(NamedTuple):
    size: int
    modified_ns: int
    changed_ns: int
    """The last change of content, name, owner or mode (``st_ctime``)."""


@dataclass(slots=True)
class _Part:
    """One of the files, open."""

    path: Path
    file: BinaryIO
    state: _State
    fingerprint: str


class ModelFiles:
    """All files of the model at ``path``, open. Raises ModelUnreadable if one cannot be opened.

    To be made before llama.cpp opens them; ``check_path`` then tells whether it opened the same ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: list[_Part] = []
        self._change = ""
        """What is different; once it is, the model is not used any more."""
        self._guard: MapGuard | None = None
        try:
            for part in parts_of(path):
                file = open_regular(part)
                self._parts.append(_Part(part, file, _state(file), ""))
                self._parts[-1].fingerprint = _fingerprint(file)
        except OSError as error:
            self.close()
            at = error.filename or path
            raise ModelUnreadable(f"cannot read the model file {at}: {error.strerror or error}") from error

    @property
    def fingerprint(self) -> str:
        """A hash that names the weights in all files, 32 hex digits: see ``_fingerprint``. The first of several may
        have nothing but metadata."""
        if len(self._parts) == 1:
            return self._parts[0].fingerprint
        return hashlib.blake2b("".join(part.fingerprint for part in self._parts).encode(), digest_size=16).hexdigest()

    def guard(self) -> None:
        """llama.cpp has mapped the files: keep the process alive if a page is missing."""
        self._guard = MapGuard([part.path for part in self._parts])

    def drop_pages(self) -> int:
        """Let the system have the memory of all pages; see ``weights_memory``."""
        return drop_pages(self.paths, [part.file for part in self._parts])

    @property
    def paths(self) -> list[Path]:
        """Of all files."""
        return [part.path for part in self._parts]

    def check_path(self) -> None:
        """Raises ModelUnreadable if another file is in the place of one by now: llama.cpp may have loaded that."""
        for part in self._parts:
            try:
                same = os.path.samestat(part.path.stat(), os.fstat(part.file.fileno()))
            except OSError:
                same = False
            if not same:
                raise ModelUnreadable(f"{part.path} was replaced while it was loaded", hint="Start the daemon again.")

    def check(self) -> None:
        """Raises ModelChanged if a file is not what was loaded. Takes a few microseconds."""
        if not self._change:
            for part in self._parts:
                if (now := _state(part.file)) != part.state:
                    self._compare(part, now)
            if not self._change and self._guard is not None and self._guard.hit():
                self._change = f"a part of {self.path} could not be read"
        if self._change:
            raise ModelChanged(self._change)

    @property
    def marks(self) -> list[tuple[int, int, int, int]]:
        """For each file its descriptor, size, time of modification and time of change, for who asks without Python
        whether all may still be as it was loaded."""
        return [(part.file.fileno(), *part.state) for part in self._parts]

    @property
    def faults(self) -> Faults | None:
        """How to ask whether a page was missing; None if nothing is guarded."""
        return None if self._guard is None else self._guard.faults

    def _compare(self, part: _Part, now: _State) -> None:
        was = part.state
        if now.size != was.size:
            self._change = f"{part.path} had {was.size} bytes when it was loaded, and has {now.size} now"
        elif now.modified_ns != was.modified_ns or _fingerprint(part.file) != part.fingerprint:
            self._change = f"{part.path} was written to since it was loaded"
        else:
            part.state = now

    def close(self) -> None:
        """To be called when llama.cpp has freed the model."""
        if self._guard is not None:
            self._guard.remove()
        for part in self._parts:
            part.file.close()


def _state(file: BinaryIO) -> _State:
    found = os.fstat(file.fileno())
    return _State(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _fingerprint(file: BinaryIO) -> str:
    """A hash that names the weights in a file, 32 hex digits.

    It covers the file's size, its first 8 MiB and 256 evenly spaced samples of 4 KiB, so any training or quantisation
    of the weights changes it. The first 8 MiB hold all metadata and the tensor table; of giant vocabularies the samples
    and ``vocab_fingerprint`` cover the rest. Rejected: hashing all of the file, which takes seconds at every start for
    a model of several GB. An edit of a few bytes by hand can escape this hash.
    """
    hasher = hashlib.blake2b(digest_size=16)
    size = os.fstat(file.fileno()).st_size
    hasher.update(size.to_bytes(8, "little"))
    file.seek(0)
    hasher.update(file.read(_HEAD_BYTES))
    for i in range(_SAMPLES):
        file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
        hasher.update(file.read(_SAMPLE_BYTES))
    return hasher.hexdigest()

"""Loads a file from the web to a folder: resumed where it was interrupted, checked, and then given its name.

Law: nothing has the file's name until all of it is on disk and its checksum is right. Only https is spoken, but to this
machine itself, also after a redirection.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmaas.errors import DiskFull, MachineError
from llmaas.frozen import frozen
from llmaas.memo_file import read_entries
from llmaas.model_files.source import may_be_asked
from llmaas.regular_file import sync_folder
from llmaas.version import __version__

Progress = Callable[[int, int | None], None]
"""Bytes that are there, and in all; None: the server does not say how many."""

_BLOCK = 1 << 20
_TIMEOUT_S = 30.0
_RESERVE = 256 << 20
"""Bytes of the disk that a model leaves free."""
_TRIES, _PAUSE_S = 6, 0.5
"""How often a lost connection is made again without any byte in between; each pause is twice as long."""
MOST_BYTES = 1 << 42


class DownloadFailed(MachineError):
    """A file could not be loaded. What has come stays, and the next try goes on from there."""

    retryable = True
    hint = "Give the same command again: it goes on where this one ended."


@frozen
class Downloaded:
    file: Path
    sha256: str


@dataclass(slots=True)
class _Partial:
    """What has come of a file: ``file`` at its end, ``hasher`` of all of it, and which version of the file it is."""

    file: BinaryIO
    hasher: Any
    size: int
    tag: str = ""
    total: int | None = None


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    progress: Progress = lambda done, total: None,
    pause_s: float = _PAUSE_S,
) -> Downloaded:
    """Load ``url`` to ``target``. ``sha256``: what the file's must be, 64 hex digits; "" if it is not known.

    Raises DownloadFailed (no connection, an error of the server, another checksum), DiskFull, MachineError.
    """
    path = target.with_name(f".{target.name}.part")
    note = target.with_name(f".{target.name}.part.json")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(path, note, url) as part:
            _load_all(url, part, note, progress, pause_s)
            part.file.flush()
            os.fsync(part.file.fileno())
            found = part.hasher.hexdigest()
        if sha256 and found != sha256.lower():
            path.unlink()
            raise DownloadFailed(
                f"{url} has another checksum than was given: SHA-256 {found}",
                hint="What was loaded is deleted. Compare the checksum with the one that its makers publish.",
            )
        path.replace(target)
        note.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        raise MachineError(
            f"cannot write {target}: {error.strerror or error}", hint="See whether the disk is full, or read-only."
        ) from None
    return Downloaded(target, found)


@contextlib.contextmanager
def _opened(path: Path, note: Path, url: str) -> Iterator[_Partial]:
    """The part that is there, if it is of the same address; else an empty one."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "r+b") as file:
        part = _Partial(file, hashlib.sha256(), 0)
        try:
            found = read_entries(note)
            part.tag = str(found["tag"]) if found["url"] == url else ""
        except KeyError:
            part.tag = ""
        if part.tag:
            while block := file.read(_BLOCK):
                part.hasher.update(block)
                part.size += len(block)
        _begin_at(part, part.size)
        yield part


def _begin_at(part: _Partial, size: int) -> None:
    """``size`` is what is there, or 0: begin again."""
    if size == 0:
        part.hasher, part.size = hashlib.sha256(), 0
    part.file.seek(size)
    part.file.truncate()


def _load_all(url: str, part: _Partial, note: Path, progress: Progress, pause_s: float) -> None:
    fruitless, pause = 0, pause_s
    while True:
        before = part.size
        try:
            _load_some(url, part, note, progress)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and part.size:  # there is no more, or the file has changed
                _begin_at(part, 0)
                part.tag = ""
            elif error.code < 500 and error.code not in (408, 429):
                raise DownloadFailed(
                    f"{url}: the server answers {error.code} {error.reason}", hint=_hint(error)
                ) from None
            reason = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)
        fruitless, pause = (0, pause_s) if part.size > before else (fruitless + 1, 2 * pause)
        if fruitless >= _TRIES:
            raise DownloadFailed(f"{url} cannot be loaded: {reason}")
        time.sleep(pause)


def _hint(error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return "It may be kept for those who accepted its licence: load it with a browser, then 'llmaas model add'."
    return "See whether the address is right."


def _load_some(url: str, part: _Partial, note: Path, progress: Progress) -> None:
    """Load the rest. Returns when all is there; raises what urllib does, also if the connection ends early."""
    headers = {"User-Agent": f"llmaas/{__version__}", "Accept-Encoding": "identity"}
    if part.size and part.tag:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.tag}
    with _OPENER.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as answer:
        if answer.status != 206:
            _begin_at(part, 0)
        length = answer.headers.get("Content-Length", "")
        part.total = part.size + int(length) if length.isdigit() else None
        part.tag = _tag(answer.headers)
        note.write_text(json.dumps({"url": url, "tag": part.tag}), "utf-8")
        _check_room(part, note)
        progress(part.size, part.total)
        while block := answer.read(_BLOCK):
            if part.size + len(block) > (part.total or MOST_BYTES):
                raise http.client.HTTPException("the server sends more than it announced")
            _write(part, block)
            progress(part.size, part.total)
    if part.total is not None and part.size < part.total:
        raise ConnectionError("the connection ended early")


def _tag(headers: Any) -> str:
    """What names this version of the file, for ``If-Range``: a strong ETag, or the date of its last change."""
    tag = headers.get("ETag", "")
    return str(tag) if tag and not tag.startswith("W/") else str(headers.get("Last-Modified", ""))


def _check_room(part: _Partial, note: Path) -> None:
    found = os.statvfs(note.parent)
    free, missing = found.f_bavail * found.f_frsize, (part.total or part.size) - part.size
    if missing + _RESERVE > free:
        raise DiskFull(f"{missing >> 20} MB are to be loaded to {note.parent}, and {free >> 20} MB are free")


def _write(part: _Partial, block: bytes) -> None:
    part.file.write(block)
    part.hasher.update(block)
    part.size += len(block)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to addresses that could have been given, and to no others."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not may_be_asked(newurl):
            fp.close()
            raise DownloadFailed(f"{req.full_url} leads to {newurl[:200]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SafeRedirects)

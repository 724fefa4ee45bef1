"""Where a model's file comes from: the web (``https://``) or a repository of Hugging Face (``hf:OWNER/REPO/FILE``).

Law: pure. What is accepted here is what ``llmaas model pull`` gets; nothing else is ever fetched.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llmaas.config.models import parts_of
from llmaas.errors import BadRequest
from llmaas.frozen import frozen

_PIECE = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HF = re.compile(rf"hf:({_PIECE})/({_PIECE})/((?:{_PIECE}/)*{_PIECE}\.gguf)(?:@({_PIECE}))?")
_LOCAL = ("localhost", "127.0.0.1", "::1")


@frozen
class HubFile:
    """A file of a repository on Hugging Face; ``revision``: a branch, tag or commit, "" for the newest."""

    repo: str
    path: str
    revision: str = ""

    @property
    def file_name(self) -> str:
        return self.path.rpartition("/")[2]


@frozen
class WebFile:
    url: str

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


def source_of(text: str) -> HubFile | WebFile | None:
    """What ``text`` names; None if it is a path. Raises BadRequest for a source that is not taken.

    >>> source_of("hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf").repo
    'Qwen/Qwen2.5-0.5B-Instruct-GGUF'
    """
    if text.startswith("hf:"):
        found = _HF.fullmatch(text)
        if found is None or ".." in text:
            raise BadRequest(
                f"{text!r} is not of the form hf:OWNER/REPO/FILE.gguf, or hf:OWNER/REPO/FILE.gguf@REVISION"
            )
        return HubFile(f"{found[1]}/{found[2]}", found[3], found[4] or "")
    scheme, separator, _ = text.partition("://")
    if not separator:
        return None
    url = urlsplit(text)
    if not may_be_asked(text):
        raise BadRequest(f"files are loaded by https:// and hf: only, not by {scheme}://")
    found_file = WebFile(text)
    if not re.fullmatch(rf"{_PIECE}\.gguf", found_file.file_name) or url.username or url.password:
        raise BadRequest(f"{text!r} does not name a file NAME.gguf", hint="Give the address of the GGUF file itself.")
    if len(parts_of_name(found_file.file_name)) > 1:
        raise BadRequest("of a model in several files each must be loaded by itself", hint="Use hf:, which loads all.")
    return found_file


def may_be_asked(url: str) -> bool:
    """Whether anything is loaded from there: by https, or by http from this machine itself.

    >>> may_be_asked("https://example.org/m.gguf"), may_be_asked("http://example.org/m.gguf")
    (True, False)
    """
    found = urlsplit(url)
    return found.scheme == "https" or (found.scheme == "http" and found.hostname in _LOCAL)


def parts_of_name(name: str) -> list[str]:
    """The names of all files of a model, by the name of the first."""
    return [part.name for part in parts_of(Path(name))]

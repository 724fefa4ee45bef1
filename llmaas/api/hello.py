"""The first frame of each side: which protocol version it speaks, which app connects, what the daemon allows.

Law: pure. The version is looked at before all else: other versions may have other fields.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import field

from llmaas.api.app_token import MAX_TOKEN
from llmaas.api.record_maps import from_map, to_map
from llmaas.api.replies import error_from
from llmaas.api.wire import Frame
from llmaas.errors import BadRequest, UnknownModel, VersionMismatch
from llmaas.frozen import frozen
from llmaas.records import SHORT_NAME, AppId

VERSION = 1
"""The protocol version of this package."""
MAX_CLIENT = 256
"""Characters of the client's name and version."""
MAX_MODEL = 256
"""Characters of the model's name."""
MAX_UID = 2**32 - 1


@frozen
class Hello:
    version: int
    app: str | None = None
    """None: the app that the token is of."""
    client: str = ""
    uid: int | None = None
    """Of the user on whose behalf the client connects, which the operator may do; None: its own."""
    token: str | None = field(default=None, repr=False)
    """The app's, if it has one."""
    model: str | None = None
    """The model that the client wants; None: the one that the daemon has by default."""
    told_of_loading: bool | None = None
    """Whether the client wants to be told, while it waits for the model to be loaded, how long that takes."""

    def __post_init__(self) -> None:
        if self.uid is not None and not 0 <= self.uid <= MAX_UID:
            raise ValueError(f"field 'uid' must be in [0, 2**32), not {self.uid}")
        if len(self.client) > MAX_CLIENT:
            raise ValueError(f"field 'client': at most {MAX_CLIENT} characters are allowed, not {len(self.client)}")
        if self.token is not None and len(self.token) > MAX_TOKEN:
            raise ValueError(f"field 'token': at most {MAX_TOKEN} characters are allowed, not {len(self.token)}")
        if self.model is not None and not 0 < len(self.model) <= MAX_MODEL:
            raise ValueError(f"field 'model': 1 to {MAX_MODEL} characters are allowed, not {len(self.model)}")
        if self.app is None and self.token is None:
            raise ValueError("field 'app' is missing")


def hello_frame(
    app: str | None,
    client: str,
    uid: int | None = None,
    token: str | None = None,
    model: str | None = None,
    *,
    told_of_loading: bool | None = None,
) -> Frame:
    """A client's first frame; ``client`` is its name and version, for the daemon's log. Raises ValueError."""
    hello = to_map(Hello(VERSION, app, client, uid, token, model, told_of_loading))
    return {"op": "hello", **{name: value for name, value in hello.items() if value is not None}}


def read_hello(frame: Frame) -> Hello:
    """What a client's first frame says. Raises BadRequest, VersionMismatch."""
    if frame.get("op") != "hello":
        raise BadRequest("field 'op': the first frame must be a hello")
    version = frame.get("version")
    if type(version) is int and version != VERSION:
        raise VersionMismatch(f"the client speaks protocol version {version}, this daemon version {VERSION}")
    return from_map(Hello, {name: value for name, value in frame.items() if name != "op"}, strict=True)


def app_id(uid: int, name: str) -> AppId:
    """The identity ``<uid>/<name>``. Raises BadRequest for a bad app name.

    >>> app_id(1000, "mail")
    '1000/mail'
    """
    if not re.fullmatch(SHORT_NAME, name):
        raise BadRequest(f"field 'app': 1 to 64 characters of A-Z a-z 0-9 . _ - are wanted, not {reprlib.repr(name)}")
    return AppId(f"{uid}/{name}")


def refuse_other_model(wanted: str | None, facts: Frame) -> None:
    """Raises UnknownModel if a client wants another model than the one that ``facts`` are about: by the name that it is
    registered under, that its makers gave it, or of its file."""
    file = str(facts.get("model_file") or "")
    names = [facts.get("served_as"), facts.get("model"), file, file.removesuffix(".gguf")]
    if wanted is not None and wanted not in filter(None, names):
        there = next(str(name) for name in [*names, "another"] if name)
        raise UnknownModel(f"the model {reprlib.repr(wanted)} is not served here; {there!r} is")


def reply_frame(server: str, limits: Frame, facts: Frame) -> Frame:
    """The daemon's first frame; ``facts`` are what it says about the model that it serves."""
    return {**facts, "type": "hello", "version": VERSION, "server": server, "limits": limits}


def read_reply(frame: Frame) -> Frame:
    """The daemon's first frame, checked. Raises what the daemon refused with, or VersionMismatch."""
    if frame.get("type") == "failed":
        raise error_from(frame)
    if frame.get("type") != "hello" or frame.get("version") != VERSION:
        raise VersionMismatch(f"what answers does not speak protocol version {VERSION} of llmaas")
    return frame

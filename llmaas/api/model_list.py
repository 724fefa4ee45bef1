"""Which models a daemon serves that serves several: asked in place of a hello, and answered without loading any.

Law: names and sizes of models are no secret to whoever may connect; nothing else is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from llmaas.api.peer import refuse_stranger
from llmaas.api.record_maps import from_map, to_map
from llmaas.api.replies import error_from
from llmaas.api.wire import Decoder, Frame, encode
from llmaas.errors import BadRequest, MalformedFrame, NotServing
from llmaas.frozen import frozen
from llmaas.weights_tier import WeightsTier

OP = "models"
_READ = 65536


@frozen
class ListedModel:
    """A model that is served. ``state``: away, starting, ready or leaving."""

    name: str
    file: str
    """The name of its file."""
    size_bytes: int
    state: str
    default: bool = False
    pinned: bool = False
    expected_s: float | None = None
    """Seconds that loading it will take, as far as is known."""
    tier: WeightsTier | None = None
    """Where its weights are; None of a daemon that does not tell."""


def list_frame(models: Sequence[ListedModel]) -> Frame:
    """The daemon's answer."""
    return {"type": OP, "models": [to_map(model) for model in models]}


def read_list(frame: Frame) -> list[ListedModel]:
    """The models of the daemon's answer. Raises what the daemon refused with, or MalformedFrame."""
    if frame.get("type") == "failed":
        raise error_from(frame)
    found = frame.get("models")
    if frame.get("type") != OP or not isinstance(found, list):
        raise MalformedFrame("what answers does not tell its models")
    try:
        return [from_map(ListedModel, each) for each in found]
    except BadRequest as error:
        raise MalformedFrame(f"the daemon's list of models cannot be read: {error}") from None


async def list_models(path: Path, daemon_uid: int | None = None, timeout: float = 5.0) -> list[ListedModel]:
    """Ask the daemon at ``path``. Raises NotServing, NotTrusted, MalformedFrame; BadRequest of a daemon that serves one
    model."""
    try:
        return await asyncio.wait_for(_ask(path, daemon_uid), timeout)
    except asyncio.TimeoutError:
        raise NotServing(f"the daemon at {path} does not answer within {timeout:g} s") from None
    except OSError as error:
        raise NotServing(f"no daemon serves {path}: {error.strerror or error}") from None


async def _ask(path: Path, daemon_uid: int | None) -> list[ListedModel]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        refuse_stranger(writer.get_extra_info("socket"), path, daemon_uid)
        writer.write(encode({"op": OP}))
        decoder = Decoder()
        while data := await reader.read(_READ):
            if frames := decoder.feed(data):
                return read_list(frames[0])
        raise NotServing(f"the connection to the daemon at {path} was lost")
    finally:
        writer.close()

"""A frame that has become a request, or the reason why it is none.

Law: pure. So a large frame can be read on another thread than the event loop's.
"""

from __future__ import annotations

import sys

from llmaas.api import messages as msg
from llmaas.api.names import check_lengths
from llmaas.api.wire import MAX_REQUEST_VALUES, Frame, read_body
from llmaas.errors import BadRequest, Busy
from llmaas.frozen import frozen


@frozen
class Incoming:
    """``request_id`` is None if the frame has no usable one; then ``request`` says why."""

    request_id: int | None
    op: str
    """What the frame calls its operation, for messages: it need not be one."""
    request: msg.Request | BadRequest | Busy


def read_incoming(body: bytes | bytearray) -> Incoming:
    """What a frame's body asks for. Raises MalformedFrame if it is no map.

    >>> read_incoming(b"\\x82\\xa2id\\x03\\xa2op\\xa4ping")
    Incoming(request_id=3, op='ping', request=Ping())
    """
    return incoming_of(read_body(body, MAX_REQUEST_VALUES))


def read_large(body: bytes | bytearray | memoryview) -> tuple[Incoming, int]:
    """As ``read_incoming``; also the bytes that the request takes in memory: none if it is refused.

    These may be four times the body's: Python keeps a text at the width of its widest character. Long byte strings are
    views of the body, and take nothing more.
    """
    frame = read_body(body, MAX_REQUEST_VALUES, views=True)
    incoming = incoming_of(frame)
    return incoming, 0 if isinstance(incoming.request, BadRequest) else _nbytes(frame)


def _nbytes(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sys.getsizeof(value) + sum(map(_nbytes, inner))


def incoming_of(frame: Frame) -> Incoming:
    """What a frame asks for."""
    op = frame.get("op")
    op = op[:64] if type(op) is str else type(op).__name__
    request_id = None
    try:
        request_id = msg.request_id(frame)
        check_lengths(frame)
        return Incoming(request_id, op, msg.request(frame))
    except BadRequest as e:
        # Another one, since the traceback of this one refers to all that the frame holds.
        return Incoming(request_id, op, BadRequest(e.message))
    except ValueError as e:
        return Incoming(request_id, op, BadRequest(str(e)))

"""Results that come in pages: lists of contexts, and conversations.

Law: pure. A page is never larger than a frame may be, and says where the next one begins: a client sends ``next`` of a
page as ``after`` to get the page after it; None: there are no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from llmaas.api.record_maps import to_map
from llmaas.api.wire import Frame
from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.records import ContextDetail, ContextInfo, RequestInfo

MAX_CONTEXTS = 16
"""Contexts of a page. Each takes the event loop about 25 us, with its tiers: an app that asks for lists all the time
makes each turn of the loop as long as a page takes. With 64 the first tokens of others came 11 ms later."""
MAX_REQUESTS = 32
"""Calls of a page. Each takes the event loop about 80 us, with its spans."""
MAX_MESSAGES = 1024
"""Messages of a page."""
MAX_PAGE = 1 << 20
"""Bytes of a page."""
_ITEM = 1024
"""Bytes that a context takes at most (``api.names`` bounds its name), and a message beside its content."""

_PLACE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,15}))?")


@frozen
class Page:
    """``result`` is in plain msgpack values."""

    result: object
    next: str | None


def page_bytes(max_frame: int) -> int:
    """How large pages may be where frames may have ``max_frame`` bytes."""
    return min(MAX_PAGE, max_frame // 2)


def context_page(contexts: Iterator[tuple[int, ContextInfo]], limit: int | None, nbytes: int) -> Page:
    """The first of ``contexts``, each with its number, by which the next page goes."""
    most = max(1, min(limit or MAX_CONTEXTS, MAX_CONTEXTS, nbytes // _ITEM))
    found = list(islice(contexts, most))
    more = next(contexts, None) is not None
    return Page([to_map(info) for _, info in found], str(found[-1][0]) if more else None)


def request_page(requests: Iterator[tuple[int, RequestInfo]], limit: int | None) -> Page:
    """As ``context_page``, of calls."""
    found = list(islice(requests, min(limit or MAX_REQUESTS, MAX_REQUESTS)))
    more = next(requests, None) is not None
    return Page([to_map(info) for _, info in found], str(found[-1][0]) if more else None)


def number_after(after: str | None) -> int:
    """The number of the last context of the page before; 0 for the first page. Raises BadRequest."""
    return _place(after)[0]


def message_page(detail: ContextDetail, after: str | None, limit: int | None, nbytes: int) -> Page:
    """The context, and its messages from the place ``after`` on. Raises BadRequest.

    A message that is larger than a page is cut. The page that goes on with it says so by ``continues``.
    """
    index, start = _place(after)
    messages: list[Frame] = []
    result = {"info": to_map(detail.info), "messages": messages, **({"continues": True} if start else {})}
    stop = min(len(detail.messages), index + min(limit or MAX_MESSAGES, MAX_MESSAGES))
    left = nbytes - _ITEM
    while index < stop:
        message = detail.messages[index]
        width = 1 if message.content.isascii() else 4
        left -= _ITEM
        end = min(len(message.content), start + max(1, left // width))
        if messages and end < len(message.content):
            break
        messages.append({"role": message.role, "content": message.content[start:end]})
        left -= width * (end - start)
        index, start = (index + 1, 0) if end == len(message.content) else (index, end)
        if start:
            break
    place = f"{index}.{start}" if start else f"{index}"
    return Page(result, place if index < len(detail.messages) else None)


def _place(after: str | None) -> tuple[int, int]:
    """Number of an item, and of a character in it."""
    if after is None:
        return 0, 0
    match = _PLACE.fullmatch(after)
    if match is None:
        raise BadRequest("field 'after' must be what the reply before gave as 'next'")
    return int(match[1]), int(match[2] or 0)

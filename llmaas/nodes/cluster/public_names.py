"""What is another thing to a client of the cluster than to one of a daemon: ids of contexts, numbers of calls, pages.

Law: pure. A context with a name has the cluster's id (``cluster_id``), which is the same wherever it is; an anonymous
one has its daemon's id, and stays where it is.
"""

from __future__ import annotations

import re
from typing import Any

from llmaas.api import messages as msg
from llmaas.api.wire import Frame
from llmaas.errors import BadRequest
from llmaas.nodes.cluster.states import cluster_id
from llmaas.records import AppId

_ID = re.compile("[0-9a-f]{16}")
_CALLS = 1 << 10
"""Numbers of calls are the daemon's times this, and the node's place among those that the entry has seen."""


def is_id(word: str) -> bool:
    """
    >>> is_id("6f1c0e52a9b34d77"), is_id("inbox")
    (True, False)
    """
    return _ID.fullmatch(word) is not None


def public_info(info: object, app: AppId) -> object:
    """A ContextInfo as the entry's clients see it."""
    if not isinstance(info, dict):
        return info
    name = info.get("name")
    if info.get("anonymous") or not isinstance(name, str):
        return {**info, "app": app}
    return {**info, "app": app, "id": cluster_id(app.partition("/")[2], name)}


def public_result(request: msg.Request, result: Any, app: AppId, word: str) -> Any:
    """The result of a request. ``word``: the public id of the context that it was about, or ""."""
    match request:
        case msg.Fork() | msg.Truncate() | msg.Migrate():
            return public_info(result, app)
        case msg.Append() | msg.Generate() if isinstance(result, dict) and word:
            return {**result, "context": word}
        case msg.Resolve() | msg.Show() if isinstance(result, dict):
            key = "context" if isinstance(request, msg.Resolve) else "info"
            return {**result, key: public_info(result.get(key), app)}
        case msg.ListContexts() if isinstance(result, list):
            return [public_info(info, app) for info in result]
        case _:
            return result


def public_word(app: AppId, word: str, name: str) -> str:
    """The public id of a context that a client calls ``word``, and whose name is ``name``; "" if it is not known."""
    if is_id(word):
        return word
    return cluster_id(app.partition("/")[2], name) if name and not name.startswith("~") else ""


def public_calls(result: object, app: AppId, place: int) -> object:
    """A page of ``requests`` of the node with this place."""
    if not isinstance(result, list):
        return result
    return [_public_call(each, app, place) if isinstance(each, dict) else each for each in result]


def _public_call(call: Frame, app: AppId, place: int) -> Frame:
    number, name = call.get("call"), call.get("name")
    known = isinstance(name, str) and name and not name.startswith("~")
    context = {"context": cluster_id(app.partition("/")[2], str(name))} if known else {}
    return {**call, "app": app, "call": number * _CALLS + place if isinstance(number, int) else number, **context}


def own_call(number: int) -> tuple[int, int]:
    """The daemon's number of a call, and its node's place.

    >>> own_call(5 * 1024 + 2)
    (5, 2)
    """
    return divmod(number, _CALLS)


def page_after(after: str | None, nodes: list[str]) -> tuple[str, str | None]:
    """The node of which the next page comes, and where it begins there. Raises BadRequest. Pages of one node follow
    those of another.

    >>> page_after(None, ["a", "b"]), page_after("b:17", ["a", "b"]), page_after("b:", ["a", "b"])
    (('a', None), ('b', '17'), ('b', None))
    """
    if after is None:
        return nodes[0], None
    node, _, place = after.partition(":")
    if node not in nodes:
        raise BadRequest(
            f"field 'after': the node {node[:80]!r} is not there any more", hint="Begin at the first page."
        )
    return node, place or None


def next_page(node: str, place: object, nodes: list[str]) -> str | None:
    """What a client sends as ``after`` for the page behind one of this node; None if that was the last.

    >>> next_page("a", "17", ["a", "b"]), next_page("a", None, ["a", "b"]), next_page("b", None, ["a", "b"])
    ('a:17', 'b:', None)
    """
    if isinstance(place, str):
        return f"{node}:{place}"
    left = nodes[nodes.index(node) + 1 :]
    return f"{left[0]}:" if left else None

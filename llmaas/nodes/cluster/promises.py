"""Where contexts are going that the controller has placed, and nodes may not have told of yet.

Law: pure. A promise holds for seconds, and their number is bounded.
"""

from __future__ import annotations

from collections import OrderedDict

from llmaas.nodes.cluster.states import FoundContext, cluster_id

LASTS_S = 30.0
NEW_S = 2.0
"""Nodes have told of it by then, if all went well."""
MOST = 4096


class Promises:
    """
    >>> promises = Promises()
    >>> promises.note("mail", FoundContext("desk", "inbox", name="inbox"), now=10.0)
    >>> found, is_new = promises.location("mail", "inbox", now=11.0)
    >>> found.node, is_new
    ('desk', True)
    >>> promises.location("mail", "inbox", now=50.0) is None
    True
    """

    def __init__(self) -> None:
        self._contexts: OrderedDict[tuple[str, str], tuple[float, FoundContext]] = OrderedDict()

    def note(self, app: str, found: FoundContext, now: float) -> None:
        """It will be there."""
        for word in {found.word, cluster_id(app, found.name)} if found.name else {found.word}:
            self._contexts[app, word] = now, found
            self._contexts.move_to_end((app, word))
        while len(self._contexts) > MOST:
            self._contexts.popitem(last=False)

    def location(self, app: str, word: str, now: float) -> tuple[FoundContext, bool] | None:
        """Where it was said to be going, and whether that was just now."""
        known = self._contexts.get((app, word))
        if known is None or now - known[0] >= LASTS_S:
            return None
        return known[1], now - known[0] < NEW_S

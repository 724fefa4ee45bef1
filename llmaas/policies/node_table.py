"""What the one who places calls knows of all nodes: their last reports, and what it has placed since.

Law: pure. All of it comes from the nodes' reports, so that a placer that was lost begins again with nothing and asks
them. Reports come every now and then; calls come in bursts meanwhile. So what is placed counts at once, as if its node
had reported it: else a whole burst would go to the node that reported last that it has nothing to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from llmaas.policies.mark_index import MOST_NODES, MarkIndex
from llmaas.policies.node_report import CallToPlace, ModelTier, NodeReport
from llmaas.policies.placement import Nowhere, PlacedCall, place


class NodeTable:
    """Give it what nodes report; ask it where a call goes; tell it what became of that."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeReport] = {}
        self.marks = MarkIndex()

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def nodes(self) -> Mapping[str, NodeReport]:
        """The nodes that are alive, by name, as they are taken to be now."""
        return self._nodes

    def report(self, report: NodeReport, now: float) -> None:
        """A node says how it is. Its contexts are not looked at here: ``holds`` tells of their changes."""
        if len(self._nodes) == MOST_NODES and report.name not in self._nodes:
            raise ValueError(f"a cluster of more than {MOST_NODES} nodes is not possible")
        self._nodes[report.name] = dataclasses.replace(report, at=now)

    def holds(self, node: str, added: Iterable[int] = (), removed: Iterable[int] = ()) -> None:
        """Marks that a node has now, and those that it has no more. All of them are added when it joins."""
        self.marks.remove(node, removed)
        self.marks.add(node, added)

    def forget(self, node: str) -> None:
        """A node has left, or died."""
        self._nodes.pop(node, None)
        self.marks.forget(node)

    def place(self, call: CallToPlace, now: float, only: Collection[str] | None = None) -> PlacedCall | Nowhere:
        held = self.marks.held(call.chain) if call.chain else {}
        return place(call, tuple(self._nodes.values()), held, now=now, only=only)

    def placed(self, call: CallToPlace, found: PlacedCall, now: float, answer_s: float = 0.0) -> None:
        """The call goes there. Until the nodes report again, they are taken to have the work. ``answer_s``: what the
        answer is expected to take, where nobody else has a turn meanwhile.
        """
        if found.move is not None:
            gone = found.move.call
            self._busy(found.move.to, gone.model, gone.model_bytes, now + found.move.seconds)
            if (node := self._nodes.get(found.node)) is not None:
                movable = tuple(one for one in node.movable if one.name != gone.name)
                free = node.free_bytes + gone.frees_bytes
                self._nodes[node.name] = dataclasses.replace(node, movable=movable, free_bytes=free)
        self._busy(found.node, call.model, call.model_bytes, now + found.start_s + answer_s)

    def _busy(self, name: str, model: str, model_bytes: int, until: float) -> None:
        """A node is taken to serve a call of that model until then."""
        node = self._nodes.get(name)
        if node is None or model not in node.models:
            return
        models, free = dict(node.models), node.free_bytes
        if models[model].tier is not ModelTier.LOADED:
            models[model] = dataclasses.replace(models[model], tier=ModelTier.LOADED)
            free = max(0, free - model_bytes)
        queue_s, drain_s = max(node.queue_s, until - node.at), max(node.drain_s, until - node.at)
        self._nodes[name] = dataclasses.replace(node, models=models, free_bytes=free, queue_s=queue_s, drain_s=drain_s)

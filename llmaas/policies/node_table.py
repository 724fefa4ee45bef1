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
from llmaas.policies.placement import LOAD_SHARE, Nowhere, PlacedCall, place


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

    def place(
        self, call: CallToPlace, now: float, only: Collection[str] | None = None, load_share: float = LOAD_SHARE
    ) -> PlacedCall | Nowhere:
        held = self.marks.held(call.chain) if call.chain else {}
        return place(call, tuple(self._nodes.values()), held, now=now, only=only, load_share=load_share)

    def placed(self, call: CallToPlace, found: PlacedCall, now: float, answer_s: float = 0.0) -> None:
        """The call goes there. Until the nodes report again, they are taken to have the work. ``answer_s``: what the
        answer is expected to take, where nobody else has a turn meanwhile.
        """
        loaded_at = now + found.wait_s + found.load_s
        if found.move is not None:
            gone, moved_at = found.move.call, now + found.move.seconds
            loaded_at += found.move.seconds
            self._busy(found.move.to, gone.model, gone.model_bytes, moved_at, moved_at)
            if (node := self._nodes.get(found.node)) is not None:
                movable = tuple(one for one in node.movable if one.name != gone.name)
                free = node.free_bytes + gone.frees_bytes
                self._nodes[node.name] = dataclasses.replace(node, movable=movable, free_bytes=free)
        self._busy(found.node, call.model, call.model_bytes, loaded_at, now + found.start_s + answer_s)

    def _busy(self, name: str, model: str, model_bytes: int, loaded_at: float, until: float) -> None:
        """A node is taken to serve a call of that model until then, and to have loaded the model before."""
        node = self._nodes.get(name)
        if node is None or model not in node.models:
            return
        changed = node
        if node.models[model].tier is not ModelTier.LOADED:
            here = dataclasses.replace(node.models[model], tier=ModelTier.LOADED, ready_s=max(0.0, loaded_at - node.at))
            free = max(0, node.free_bytes - model_bytes)
            changed = dataclasses.replace(
                node, models={**node.models, model: here}, free_bytes=free, loading_s=max(node.loading_s, here.ready_s)
            )
        queue_s, drain_s = max(node.queue_s, until - node.at), max(node.drain_s, until - node.at)
        self._nodes[name] = dataclasses.replace(changed, queue_s=queue_s, drain_s=drain_s)

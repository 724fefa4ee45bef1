"""Which node has which context, as the nodes have told.

Law: pure. What a node told last holds until it tells something else: one that does not answer still owns its contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmaas.nodes.cluster.states import FoundContext, HeldContext, NodeState


class ClusterDirectory:
    """Give it each state that comes; it knows them by the names of nodes."""

    def __init__(self) -> None:
        self.states: dict[str, NodeState] = {}
        self._heard: dict[str, float] = {}
        self._words: dict[str, dict[tuple[str, str], HeldContext]] = {}
        """Of each node, contexts by app and each word that names them: name, cluster's id, daemon's id."""

    def take(self, state: NodeState, now: float) -> None:
        before = self.states.get(state.name)
        if state.contexts is None and before is not None and (before.run, before.serial) == (state.run, state.serial):
            state = replace(state, contexts=before.contexts)
        elif state.contexts is not None and (before is None or state.contexts is not before.contexts):
            self._words[state.name] = dict(_words(state.contexts))
        self.states[state.name] = state
        if state.serving:
            self._heard[state.name] = now

    def drop(self, node: str) -> None:
        """It has left."""
        for known in (self.states, self._heard, self._words):
            known.pop(node, None)

    def age_s(self, node: str, now: float) -> float:
        """Seconds since the node said that it serves."""
        return now - self._heard.get(node, float("-inf"))

    def known(self, node: str) -> tuple[str, int]:
        """The run and serial of the contexts that are known of a node."""
        state = self.states.get(node)
        return ("", -1) if state is None or state.contexts is None else (state.run, state.serial)

    def find(self, app: str, word: str) -> list[FoundContext]:
        """All that the word names; there should be one at most."""
        found = []
        for node, words in self._words.items():
            if (held := words.get((app, word))) is not None:
                said = held.id if held.anonymous else held.name
                found.append(FoundContext(node, said, held.n_tokens, held.n_held, held.name))
        return sorted(found, key=lambda each: each.node)

    def twice(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """App, name and nodes of contexts that several nodes have. A daemon knows nothing of the cluster: programs that
        use it by its own socket may make such."""
        nodes: dict[tuple[str, str], list[str]] = {}
        for node, state in self.states.items():
            for held in state.contexts or ():
                if not held.anonymous:
                    nodes.setdefault((held.app, held.name), []).append(node)
        return [(app, name, tuple(sorted(at))) for (app, name), at in sorted(nodes.items()) if len(at) > 1]


def _words(contexts: Sequence[HeldContext]) -> Iterator[tuple[tuple[str, str], HeldContext]]:
    for held in contexts:
        for word in {held.name, held.id, held.public_id}:
            yield (held.app, word), held

"""Which node a request of an entry's client goes to, and in which form.

Law: a context that is there is found, whatever the cluster has been told: where a node says that it does not know it,
the others are asked. That a context is nowhere is said only if every node that has joined has said so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from llmaas.api import messages as msg
from llmaas.api.transfer_records import MovedContext
from llmaas.errors import LlmaasError, NodeUnreachable, UnknownContext
from llmaas.nodes.cluster.fleet import Fleet
from llmaas.nodes.cluster.public_names import is_id
from llmaas.nodes.cluster.states import ClusterRefusal, ContextMove, FoundContext, PlaceAsked, cluster_id

log = logging.getLogger(__name__)

MOST_KNOWN = 4096
"""Contexts of which the entry itself knows where they are."""
_TOKEN_CHARS = 4
"""Of a token of text, to guess how many tokens a call brings."""


class Routing:
    """Of one entry, for all its clients."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._known: OrderedDict[tuple[str, str], FoundContext] = OrderedDict()
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._waiting = Counter[tuple[str, str]]()
        self._places: dict[str, int] = {}

    def place_of(self, node: str) -> int:
        """A number of the node, the same for as long as the entry runs."""
        return self._places.setdefault(node, len(self._places))

    def node_of(self, place: int) -> str | None:
        return next((node for node, number in self._places.items() if number == place), None)

    @asynccontextmanager
    async def alone(self, app: str, name: str) -> AsyncIterator[None]:
        """Nobody else of this entry's places, makes or moves the context meanwhile."""
        key = app, name
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._waiting[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._locks[key]

    # -- contexts that are there

    def found_at(self, app: str, info: object, node: str) -> None:
        """The node has told of a context of its own, by a ContextInfo."""
        if not isinstance(info, dict) or not isinstance(info.get("name"), str) or not isinstance(info.get("id"), str):
            return
        name, own_id = info["name"], info["id"]
        anonymous = bool(info.get("anonymous"))
        found = FoundContext(node, own_id if anonymous else name, name="" if anonymous else name)
        for word in (own_id, name) if anonymous else (name, cluster_id(app, name)):
            self.answered(app, word, found)

    def answered(self, app: str, word: str, found: FoundContext) -> None:
        self._known[app, word] = found
        self._known.move_to_end((app, word))
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def gone(self, app: str, word: str) -> None:
        """It was deleted, or is where nobody knows."""
        found = self._known.pop((app, word), None)
        if found is not None and found.name:
            self._known.pop((app, found.name), None)
            self._known.pop((app, cluster_id(app, found.name)), None)

    async def candidates(self, app: str, word: str) -> tuple[list[FoundContext], list[str]]:
        """Where it may be, the likeliest first: all nodes that serve; and nodes that do not serve, but may have it."""
        first = list(await self.fleet.locate(app, word))
        if (known := self._known.get((app, word))) is not None:
            first.insert(0, known)
        said = first[0].word if first else word
        name = first[0].name if first else "" if is_id(word) else word
        nodes = await self.fleet.nodes()
        serving = [node.place.name for node in nodes if node.serving]
        order = dict.fromkeys([*(each.node for each in first if each.node in serving), *serving])
        silent = [node.place.name for node in nodes if not node.serving]
        owners = [each.node for each in first if each.node not in serving]
        by_node = {each.node: each for each in reversed(first)}
        found = [by_node.get(node) or FoundContext(node, said, name=name) for node in order]
        return found, list(dict.fromkeys([*owners, *silent]))

    async def placed(self, app: str, word: str, n_new: int) -> tuple[list[FoundContext], list[str]]:
        """As ``candidates``; the first is the node that is to serve a call which brings ``n_new`` tokens, and the
        context is there now if it could be taken there."""
        found, silent = await self.candidates(app, word)
        if not found:
            return found, silent
        name = found[0].word
        async with self.alone(app, name):
            answer = await self.fleet.where(PlaceAsked(app, name, n_new))
            if isinstance(answer, ClusterRefusal):
                return found, silent
            for move in answer.moves:
                refused = await self.move(move)
                if isinstance(refused, ClusterRefusal):
                    log.info("%r of %s stays at %s: %s", move.name, move.app, move.source, refused.message)
                    await self.fleet.look()
                    return await self.candidates(app, word)
        there = FoundContext(answer.node, name, name=found[0].name)
        return [there, *(each for each in found if each.node != there.node)], silent

    async def move(self, move: ContextMove) -> MovedContext | ClusterRefusal:
        """Have a context taken to another node. Where it was already on its way, it may be there when this begins: the
        agent that began it was lost, and Ray has asked another one."""
        said = await self.fleet.move(move)
        there = move.name_there or move.name
        if isinstance(said, ClusterRefusal) and said.code == UnknownContext.code:
            await self.fleet.look()
            at = [each for each in await self.fleet.locate(move.app, there) if each.node == move.target]
            said = MovedContext(move.target, there, at[0].n_tokens, 0, 0) if at else said
        if isinstance(said, MovedContext):
            log.info("%r of %s is at %s now", move.name, move.app, move.target)
            self.gone(move.app, move.name)
            for word in (there, cluster_id(move.app, there)):
                self.answered(move.app, word, FoundContext(move.target, there, name=there))
        return said

    # -- contexts that are to be made

    async def place_new(self, asked: PlaceAsked) -> str:
        """The node for it. Raises what the cluster says."""
        answer = await self.fleet.where(asked)
        if isinstance(answer, ClusterRefusal):
            raise answer.error()
        return answer.node


def new_tokens(request: msg.Request) -> int:
    """About as many tokens as a request brings.

    >>> new_tokens(msg.Append("inbox", prompt="one two three four"))
    5
    """
    texts = [message.content for message in getattr(request, "messages", ())]
    for name in ("prompt", "system"):
        if (text := getattr(request, name, None)) is not None:
            texts.append(text)
    return sum(map(len, texts)) // _TOKEN_CHARS + len(texts)


def nowhere(word: str, silent: Sequence[str]) -> LlmaasError:
    """No node that answers has the context."""
    if silent:
        return NodeUnreachable(
            f"no node that answers has the context {word[:80]!r}; {', '.join(silent)} may have it, and does not serve",
            hint="It is served again when that node is back; 'llmaas cluster status' says what is wrong with it.",
        )
    return UnknownContext(f"there is no context {word[:80]!r} at any node")

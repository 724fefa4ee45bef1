"""What a node tells the cluster, and what the cluster tells an entry.

Law: pure; values only, that cross from process to process. What a node tells is bounded: ``MOST_CONTEXTS`` contexts,
those that were used last.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

from llmaas.errors import LlmaasError, MachineError, by_code
from llmaas.frozen import frozen
from llmaas.kvchunks.keys import namespace
from llmaas.nodes.cluster.mark_book import MarkChange
from llmaas.policies.context_marks import MARK_BYTES
from llmaas.policies.node_report import MOST_CHAIN, NodeReport
from llmaas.records import AppId, ContextId, ContextInfo

MOST_CONTEXTS = 4096
"""That a node tells of. Others are found all the same: the nodes are asked, one after the other."""
MOST_NODES = 1000
_PERSON = b"llmaas.cluster.1"


def cluster_id(app: str, name: str) -> ContextId:
    """The id of a context with a name, wherever it is: a daemon's own id changes when the context moves.

    >>> cluster_id("mail", "inbox") == cluster_id("mail", "inbox"), len(cluster_id("mail", "inbox"))
    (True, 16)
    """
    hasher = blake2b(len(app).to_bytes(8, "little"), digest_size=8, person=_PERSON)
    hasher.update(app.encode())
    hasher.update(name.encode("utf-8", "surrogatepass"))
    return ContextId(hasher.hexdigest())


@frozen
class HeldContext:
    """A context of a node. ``app`` is its app's name without the user: users have other numbers on other machines."""

    app: str
    name: str
    id: ContextId
    """Of its daemon."""
    anonymous: bool
    n_tokens: int
    n_held: int
    """Tokens whose KV is in CELLS, POOL or on DISK."""

    @property
    def public_id(self) -> ContextId:
        return self.id if self.anonymous else cluster_id(self.app, self.name)


def held_context(info: ContextInfo) -> HeldContext:
    held = sum(info.tiers[:3])
    app = info.app.partition("/")[2]
    return HeldContext(app, info.name, info.id, info.anonymous, info.n_tokens, held)


@frozen
class NodePlace:
    """Where a node's daemon is, as who joins says."""

    name: str
    """By which all other nodes are paired with it."""
    socket: str
    machine: str = ""
    """The name of the machine on which that is, and the agent."""
    daemon_uid: int | None = None
    data_dir: str | None = None
    """Of its daemon; None if that is on another machine."""
    door: str | None = None
    """HOST:PORT on which entries on other machines reach the daemon."""
    let_in: tuple[str, ...] = ()
    """Paired nodes whose entries may."""


class Kin(NamedTuple):
    """Nodes of which this is the same have the same chunk keys for the same text of an app of one name."""

    user: str
    fingerprint: str

    def root(self, app: str) -> bytes:
        """Of the chunk keys of an app's contexts. ``app``: its name without the user."""
        return namespace(AppId(f"{self.user}/{app}"), self.fingerprint)


@frozen
class PrefixChain:
    """By which chunks nodes of one kin would have a conversation: packed marks of all its full chunks."""

    kin: Kin
    marks: bytes

    def __post_init__(self) -> None:
        if len(self.marks) > MOST_CHAIN * MARK_BYTES:
            raise ValueError(f"field 'marks': at most {MOST_CHAIN} chunks are allowed, not {len(self.marks)} bytes")


@frozen
class NodeState:
    """A node at one moment. ``contexts`` None: as they were told with the same ``serial``."""

    place: NodePlace
    run: str
    """Of the agent; serials count within one."""
    serial: int
    serving: bool
    why: str = ""
    """What is wrong with its daemon."""
    pid: int = 0
    """The agent's process."""
    model: str = ""
    report: NodeReport | None = None
    token_bytes: float = 0.0
    """Of a token in coded chunks."""
    peers: tuple[str, ...] | None = None
    """Nodes that it is paired with, and reaches; None: it cannot say."""
    barred: tuple[str, ...] = ()
    """Nodes to which a move has failed, not long ago."""
    contexts: tuple[HeldContext, ...] | None = None
    n_contexts: int = 0
    n_active: int = 0
    n_waiting: int = 0
    user: str = ""
    """Number of the daemon's user on its machine."""
    fingerprint: str = ""
    """Of the model. With the app's name these two are what chunk keys begin with."""
    marks: MarkChange | None = None
    """Of chunks that it has; None: as they were told before."""

    @property
    def kin(self) -> Kin:
        return Kin(self.user, self.fingerprint)

    @property
    def name(self) -> str:
        return self.place.name


@frozen
class PlaceAsked:
    """Where is this call to be served? ``word``: the context's name or id; "": it is to be made."""

    app: str
    word: str
    n_new: int
    """Tokens that it brings, as far as the entry can tell."""
    model: str | None = None
    name: str | None = None
    """Of a context that is to be made."""
    near: str = ""
    """The node that began such a conversation before, with ``n_near`` of its tokens."""
    n_near: int = 0
    chains: tuple[PrefixChain, ...] = ()
    """By which nodes are found that hold the beginning of what it brings."""


@frozen
class ContextMove:
    """A context that is to go to another node. ``name_there``: another name than it has; ``way``: how it goes, of
    ``MOVE_WAYS``."""

    app: str
    name: str
    source: str
    target: str
    name_there: str | None = None
    way: str = "both"


@frozen
class CallPlacement:
    """Where a call is served. ``moves`` come first; where they fail, the context is where it was."""

    node: str
    start_s: float = 0.0
    moves: tuple[ContextMove, ...] = ()


@frozen
class ClusterRefusal:
    """An error as a value: actors return it, since what Ray makes of an exception is another one."""

    code: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: LlmaasError) -> ClusterRefusal:
        return cls(error.code, error.message, error.hint)

    def error(self) -> LlmaasError:
        return by_code().get(self.code, MachineError)(self.message, hint=self.hint or None)


@frozen
class FoundContext:
    """Where a context was when its node was asked last. ``name`` is what daemons are asked for."""

    node: str
    word: str
    """Its name, or the daemon's id of an anonymous one."""
    n_tokens: int = 0
    n_held: int = 0
    name: str = ""


@frozen
class NodeSummary:
    """A node, for people and entries."""

    place: NodePlace
    serving: bool
    why: str
    model: str
    n_contexts: int
    n_active: int
    n_waiting: int
    age_s: float
    """Since it was heard last."""
    pid: int = 0
    """The agent's process."""
    prefill_rate: float = 0.0
    queue_s: float = 0.0
    links: tuple[str, ...] = ()
    """Nodes to which contexts can go from here, as far as is known."""
    n_marks: int = 0
    """That are known of it."""
    in_memory: bool = True
    """Whether its model is."""
    start_s: float = 0.0
    """Seconds until its model is in memory."""
    user: str = ""
    fingerprint: str = ""

    @property
    def kin(self) -> Kin:
        return Kin(self.user, self.fingerprint)

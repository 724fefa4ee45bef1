"""What a node asks another one for, when a context goes there.

Law: pure. A message with an unknown field, without a required one, or with a value of a wrong type or out of bounds is
refused (BadRequest that names the field).
"""

from __future__ import annotations

import re
import reprlib

from llmaas.api.messages import Generate
from llmaas.api.names import check_name, check_ttl
from llmaas.api.record_maps import from_map, to_map
from llmaas.api.transfer_messages import DIGEST_BYTES, MAX_SPANS
from llmaas.api.transfer_records import ChunkPiece, MovedTurn
from llmaas.api.wire import Frame
from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.records import SHORT_NAME, TOKEN_BYTES, ContextSpan

_MOVE = re.compile("[0-9a-f]{32}")
MAX_TURNS = 64
"""Of which the other node remembers the last ones."""


def _check_move(move: str) -> None:
    if not _MOVE.fullmatch(move):
        raise ValueError(f"field 'move': {reprlib.repr(move)} is no name of a move")


@frozen
class Offer:
    """A context is to come: what is known of it before its tokens."""

    move: str
    app: str
    """Its app's name, without the user: the context will be of the user who runs the other daemon."""
    name: str
    model: str
    vocab: str
    n_spans: int
    root: bytes
    kv: bytes
    adapter: str = ""
    ttl: float | None = None

    def __post_init__(self) -> None:
        _check_move(self.move)
        check_name(self.name)
        check_ttl(self.ttl)
        if not re.fullmatch(SHORT_NAME, self.app):
            raise ValueError(f"field 'app': {reprlib.repr(self.app)} is no name of an app")
        if not 0 <= self.n_spans <= MAX_SPANS:
            raise ValueError(f"field 'n_spans': at most {MAX_SPANS} are allowed, not {self.n_spans}")
        _check_digests(self.root, self.kv)
        if len(self.model) + len(self.vocab) + len(self.adapter) > 1024:
            raise ValueError("fields 'model', 'vocab', 'adapter': at most 1024 characters are allowed in all")


@frozen
class Spans:
    """The next of its tokens and messages."""

    move: str
    spans: tuple[ContextSpan, ...]


@frozen
class StageContext:
    """That is what there is of it by now, and it will come later: take its chunks ahead. It stays the sender's."""

    move: str


@frozen
class Grow:
    """What waits of it goes on with these tokens: bring it into CELLS. The reply comes when that is done, or given
    up."""

    move: str
    tokens: bytes = b""

    def __post_init__(self) -> None:
        _check_move(self.move)
        if len(self.tokens) % TOKEN_BYTES:
            raise ValueError(f"field 'tokens': they take {TOKEN_BYTES} bytes each, not {len(self.tokens)} in all")


@frozen
class Take:
    """That was all: take it. From the reply on the other node owns it. ``spans``: those behind the ones that were
    announced, of a context that waits there; the first of them begins with ``n_known`` of the tokens by which that has
    grown. ``turns``: the last ones that had an idempotency key, oldest first."""

    move: str
    spans: tuple[ContextSpan, ...] = ()
    n_known: int = 0
    turns: tuple[MovedTurn, ...] = ()

    def __post_init__(self) -> None:
        _check_move(self.move)
        if self.n_known < 0 or (self.n_known and not self.spans):
            raise ValueError("field 'n_known': must be 0 or more, and 0 without spans")
        if len(self.turns) > MAX_TURNS:
            raise ValueError(f"field 'turns': at most {MAX_TURNS} are allowed, not {len(self.turns)}")


@frozen
class MovedChunks:
    """Coded chunks of a context that was taken, or waits. Without any: which are missing. ``computes``: what is missing
    of one that waits may be computed meanwhile, from its beginning on. The reply says how many of its tokens have been,
    or are being, brought into CELLS."""

    move: str
    root: bytes
    kv: bytes
    pieces: tuple[ChunkPiece, ...] = ()
    computes: bool = False

    def __post_init__(self) -> None:
        _check_move(self.move)
        _check_digests(self.root, self.kv)


@frozen
class MoveAsked:
    """What has become of a move? If it has not been taken, it never will."""

    move: str

    def __post_init__(self) -> None:
        _check_move(self.move)


@frozen
class MoveSettled:
    """Nobody will ask for this move any more."""

    move: str

    def __post_init__(self) -> None:
        _check_move(self.move)


@frozen
class GoOn:
    """Go on with the answer at the end of a context that was taken; its tokens come in frames ahead of the reply.
    ``answer``: what is left of it, about no context that it names. ``n_answered``: the tokens that it has."""

    move: str
    answer: Generate
    n_answered: int = 0

    def __post_init__(self) -> None:
        _check_move(self.move)
        if self.answer.messages or self.answer.prompt is not None or self.answer.idempotency_key is not None:
            raise ValueError("field 'answer': nothing is to be added before it")
        if self.n_answered < 0:
            raise ValueError(f"field 'n_answered': must be 0 or more, not {self.n_answered}")


NodeRequest = GoOn | Grow | StageContext | Offer | Spans | Take | MovedChunks | MoveAsked | MoveSettled
_KINDS: dict[str, type[NodeRequest]] = {
    "offer": Offer,
    "spans": Spans,
    "take": Take,
    "chunks": MovedChunks,
    "asked": MoveAsked,
    "settled": MoveSettled,
    "go_on": GoOn,
    "stage": StageContext,
    "grow": Grow,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def node_request(frame: Frame) -> NodeRequest:
    """Raises BadRequest."""
    op = frame.get("op")
    kind = _KINDS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise BadRequest(f"this node knows no operation {reprlib.repr(op)}")
    return from_map(kind, {name: value for name, value in frame.items() if name != "op"}, strict=True)


def node_frame(request: NodeRequest) -> Frame:
    """
    >>> node_frame(Take("a" * 32))
    {'op': 'take', 'move': 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'spans': [], 'n_known': 0, 'turns': []}
    """
    return {"op": _NAMES[type(request)], **to_map(request)}


def _check_digests(*digests: bytes) -> None:
    if any(len(digest) != DIGEST_BYTES for digest in digests):
        raise ValueError(f"fields 'root', 'kv': must have {DIGEST_BYTES} bytes")

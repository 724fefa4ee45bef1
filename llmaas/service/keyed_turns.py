"""Requests with an idempotency key: what of a turn is stored with its key, and how it is told again or continued.

Law: the same request with the same key is carried out once. A turn that is stored whole is told again, word for word;
one that was interrupted goes on where it was cut off, so that what is told in the end is what is stored.
"""

from __future__ import annotations

import enum
import hashlib
import json
import secrets
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from typing import Any

from llmaas.api.transfer_records import MovedTurn
from llmaas.calls import CallSpec, Done, FinishReason, Piece, SwitchReport
from llmaas.errors import Conflict, KeyReused
from llmaas.frozen import frozen
from llmaas.kvchunks.store.store import KeyedTurn, Span, Store
from llmaas.kvchunks.store.tokens import pack, unpack
from llmaas.planner.actions import Outcome
from llmaas.records import ContextId
from llmaas.service.call import REASONS, Call
from llmaas.service.live_context import total_tokens
from llmaas.service.pending_turn import Shift

_MOST_MOVED = 4 << 20
"""Bytes of what goes to another node with a context, at most."""
_TEXT_AT_ONCE, _TOKENS_AT_ONCE = 16384, 4096
"""Characters and tokens of a piece in which an answer is told again: no frame grows with the answer."""


@frozen
class ToldTurn:
    """What the caller of a turn that is stored whole was told."""

    done: Done
    text: str
    tokens: tuple[int, ...]


def seeded(spec: CallSpec) -> CallSpec:
    """The call with a seed, if its answer is drawn by chance and has none: that which its key gives, so that an answer
    of which nothing was stored is drawn alike when it is asked for again; without a key any."""
    generation, key = spec.generation, spec.idempotency_key
    if generation is None or generation.sampling.seed is not None:
        return spec
    if key is not None:
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")
    elif generation.sampling.greedy:
        return spec
    else:
        seed = secrets.randbits(32)
    return replace(spec, generation=replace(generation, sampling=replace(generation.sampling, seed=seed)))


def digest(spec: CallSpec) -> bytes:
    """What a call asks for, 16 bytes: its turn, its answer and its adapter. On what terms it is served may differ when
    it is asked again. Fields that have their defaults do not count, so that later versions may add some."""
    asked = {"turn": _said(spec.turn), "adapter": spec.terms.adapter}
    if spec.generation is not None:
        asked["generation"] = _said(spec.generation)
    text = json.dumps(asked, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _said(value: Any) -> Any:
    """The fields of a record that do not have their defaults, as plain values."""
    if isinstance(value, tuple):
        return [_said(each) for each in value]
    if not is_dataclass(value):
        return value
    return {
        field.name: _said(getattr(value, field.name))
        for field in fields(value)
        if field.default is MISSING or getattr(value, field.name) != field.default
    }


# -- stored with the turn


def keyed_turn(call: Call, n_spans: int, done: Done | None) -> KeyedTurn | None:
    """What to store beside the call's turn, which is ``n_spans`` spans; None if it has no key. ``done``: what the
    caller is told; None if the answer was interrupted."""
    key = call.spec.idempotency_key
    if key is None:
        return None
    result = None if done is None else _packed(ToldTurn(done, call.answer.text, tuple(call.answer.drawn)))
    return KeyedTurn(key, digest(call.spec), n_spans, len(call.live.tokens), result)


def ended(call: Call, outcome: Outcome) -> Outcome | None:
    """How the answer ended; None if it was interrupted before its end. A call that is cancelled with its last token has
    a whole answer: drawing that token again might bring another."""
    if outcome in REASONS:
        return outcome
    if call.answer.stopped_by is not None:
        return Outcome.STOP
    is_long = call.spec.generation is not None and len(call.answer.drawn) == call.spec.max_new
    return Outcome.LENGTH if is_long else None


def _packed(told: ToldTurn) -> bytes:
    plain = asdict(told)
    return zlib.compress(json.dumps(plain, default=_value).encode(), 1)


def _value(thing: object) -> object:
    assert isinstance(thing, enum.Enum)
    return thing.value


def _unpacked(result: bytes) -> ToldTurn:
    plain = json.loads(zlib.decompress(result))
    known = {field.name for field in fields(Done)}
    done = {name: value for name, value in plain["done"].items() if name in known}
    done |= {"reason": FinishReason(done["reason"]), "switch": SwitchReport(**done["switch"])}
    return ToldTurn(Done(**done), plain["text"], tuple(plain["tokens"]))


# -- they go with their context to another node


def leaving_turns(turns: Sequence[KeyedTurn]) -> tuple[MovedTurn, ...]:
    """Those of a context, oldest first; the last ones, if that is much. Whoever takes them knows nothing of how they
    are stored here."""
    found, room = list[MovedTurn](), _MOST_MOVED
    for turn in reversed(turns):
        told = None if turn.result is None else _unpacked(turn.result)
        moved = MovedTurn(turn.key, turn.request, turn.n_tokens, turn.n_spans)
        if told is not None:
            moved = replace(moved, done=told.done, text=told.text, tokens=pack(told.tokens))
        room -= len(moved.key) + 4 * len(moved.text) + len(moved.tokens)
        if room < 0:
            break
        found.append(moved)
    return tuple(reversed(found))


def arrived_turns(turns: Sequence[MovedTurn], context: ContextId, n_tokens: int) -> list[KeyedTurn]:
    """Those that can be turns of the context, which has this id here and ``n_tokens``. The others are as if they had
    never been asked for."""
    found = list[KeyedTurn]()
    for turn in turns:
        if turn.n_tokens > n_tokens:
            continue
        result = None
        if turn.done is not None:
            told = ToldTurn(replace(turn.done, context=context), turn.text, tuple(unpack(turn.tokens)))
            result = _packed(told)
        found.append(KeyedTurn(turn.key, turn.request, turn.n_spans, turn.n_tokens, result))
    return found


# -- asked again


def recall(store: Store, context: ContextId, spec: CallSpec) -> ToldTurn | KeyedTurn | None:
    """What became of the request when it was asked before: told whole, interrupted, or (None) never or not kept.

    On the store's thread. Raises KeyReused if it asks for something else than before.
    """
    assert spec.idempotency_key is not None
    found = store.turn(context, spec.idempotency_key)
    if found is None:
        return None
    if found.request != digest(spec):
        raise KeyReused("another request was made with this idempotency key, in the same context")
    return found if found.result is None else _unpacked(found.result)


def pieces(told: ToldTurn) -> Iterator[Piece]:
    """The answer in pieces."""
    n = max(-(-len(told.text) // _TEXT_AT_ONCE), -(-len(told.tokens) // _TOKENS_AT_ONCE))
    for i in range(n):
        text = told.text[i * _TEXT_AT_ONCE : (i + 1) * _TEXT_AT_ONCE]
        yield Piece(text, told.tokens[i * _TOKENS_AT_ONCE : (i + 1) * _TOKENS_AT_ONCE])


def continue_turn(call: Call, turn: KeyedTurn, stored: Sequence[Span]) -> list[int]:
    """Let the call go on with its interrupted turn, which is the end of its context: memory is as if the turn had just
    been added and some of its answer drawn. Returns these tokens of the answer, for ``Answer.resume``.

    The store changes once, when the call is committed; until then it has the interrupted turn. The answer begins anew
    if it keeps to a grammar or schema, whose state is not kept. Raises Conflict if the context went on without it.
    """
    live, pending = call.live, call.pending
    if turn.n_spans is None or not 1 <= turn.n_spans <= len(stored):
        raise Conflict(
            "the answer to this request was interrupted, and the context has gone on since", n_tokens=len(live.tokens)
        )
    kept, (*added, answer) = list(stored[: -turn.n_spans]), stored[-turn.n_spans :]
    n_drawn = 0 if call.spec.is_constrained else min(len(answer.tokens), call.spec.max_new - 1)
    pending.shift = Shift(live.tokens, live.marks, kept)
    tokens = live.tokens
    live.replace_spans(kept)
    pending.base, pending.spans = len(live.tokens), added
    live.tokens = tokens[: pending.base + total_tokens(added) + n_drawn]
    return list(answer.tokens[:n_drawn])


def refuse_other_length(spec: CallSpec, n_tokens: int) -> None:
    """Raises Conflict unless the context has as many tokens as the call expects, if it says so."""
    if spec.if_n_tokens is not None and spec.if_n_tokens != n_tokens:
        raise Conflict(f"the context has {n_tokens} tokens, not {spec.if_n_tokens}", n_tokens=n_tokens)


def tell(told: ToldTurn, emit: Callable[[Piece], None]) -> Done:
    """Tell a turn again as it was told; returns its Done."""
    for piece in pieces(told):
        emit(piece)
    return told.done

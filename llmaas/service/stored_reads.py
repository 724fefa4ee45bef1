"""Reads stored contexts on a thread: all of one, or what a start must find out from tokens and messages of many.

Law: nothing is returned of a context whose rows were not compared with their checksums.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from llmaas.errors import ContextDamaged, UnknownContext
from llmaas.kvchunks.store.store import Store
from llmaas.service.histories import packed_history
from llmaas.service.history_keys import PackedHistory
from llmaas.service.live_context import KeyChain, LiveContext, MessageMark, key_chain
from llmaas.service.quotas import text_size


class ReadContext(NamedTuple):
    """All of a context."""

    tokens: array[int]
    marks: list[MessageMark]
    chain: KeyChain


class Look(NamedTuple):
    """What is kept of a context that nobody has used yet, after a look at all of it."""

    chain: KeyChain
    history: PackedHistory
    nbytes: int
    """Bytes by ``quotas.text_size``, of the whole context."""


def read(store: Store, live: LiveContext, *, states: bool) -> ReadContext:
    """All of a context. ``states``: see ``key_chain``. Raises UnknownContext, ContextDamaged, StoreFailed."""
    whole = _whole(store, live)
    return ReadContext(whole.tokens, whole.marks, key_chain(live.root, whole.tokens, states=states))


def look(store: Store, lives: Sequence[LiveContext], *, states: bool) -> list[tuple[LiveContext, Look | str]]:
    """What there is in each context, or what is wrong with it. ``states``: see ``key_chain``. Raises StoreFailed."""
    found = list[tuple[LiveContext, Look | str]]()
    for live in lives:
        try:
            whole = _whole(store, live)
        except ContextDamaged as error:
            found.append((live, error.message))
        except UnknownContext:  # deleted meanwhile
            continue
        else:
            chain = key_chain(live.root, whole.tokens, states=states)
            found.append((live, Look(chain, packed_history(whole), text_size(whole).nbytes)))
    return found


def _whole(store: Store, live: LiveContext) -> LiveContext:
    """The context as it is in the store, apart from the one in memory."""
    scratch = replace(live, tokens=array("i"), marks=[], unread=None)
    scratch.add_spans(store.spans(live.id))
    return scratch

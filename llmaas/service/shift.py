"""A context that is full goes on without its oldest messages, if the call allows it ("context shift").

Law: whole turns go, oldest first; never what stands before the first of them, and never the turn that is being
answered. This changes memory only: the store changes once, when the call is committed, so that a crash or a failure
leaves the old conversation, whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from llmaas.engine.base import Engine
from llmaas.kvchunks.store.store import Span
from llmaas.kvchunks.store.tokens import n_common
from llmaas.records import Message
from llmaas.service.call import Call
from llmaas.service.chat import LEADING
from llmaas.service.live_context import total_tokens
from llmaas.service.pending_turn import PendingTurn, Shift
from llmaas.service.turn_spans import first_spans, turn_spans


def is_tight(call: Call, limit: int) -> bool:
    """True if the context should shift before the answer begins: less than a quarter of ``limit`` is left for it, and
    less than it may need."""
    pending, max_new = call.pending, call.spec.max_new
    return call.spec.shifts and pending.base + pending.n_prompt + min(max_new, limit // 4) > limit


def shift(call: Call, stored: Sequence[Span], engine: Engine, limit: int) -> int | None:
    """Drop old turns of the call's context in memory until half of ``limit`` is free, or none is left to drop.

    ``stored``: the spans that the store has. Returns how many leading tokens stayed as they were; None if there was
    nothing to drop. Half, not just what the turn needs: all that follows the gap is computed anew, and this way that
    happens once in many turns. On any thread, while the call holds its context's lock.
    """
    pending, live, drawn = call.pending, call.live, call.answer.drawn
    old_tokens, old_marks = live.tokens, live.marks
    so_far = pending.shift or Shift(old_tokens[: pending.base], old_marks, list(stored))
    new = pending.n_prompt + len(drawn)
    continues = not (pending.turn.messages or pending.turn.prompt)
    kept = _shortened(so_far.kept, limit // 2 - new, keep_last=continues)
    dropped = total_tokens(so_far.kept) - total_tokens(kept)
    if not dropped:
        return None
    try:
        kept = _begun_anew(engine, kept, limit)
        live.replace_spans(kept)
        spans = turn_spans(engine, live, pending.turn, answer=True, limit=limit)
    except BaseException:
        live.tokens, live.marks = old_tokens, old_marks
        raise
    so_far.kept, so_far.dropped, pending.shift = kept, so_far.dropped + dropped, so_far
    pending.base, pending.spans = len(live.tokens), spans
    for span in spans:
        live.tokens.extend(span.tokens)
    live.tokens.extend(drawn)
    return n_common(old_tokens, live.tokens)


def restore(pending: PendingTurn) -> int:
    """Make the context in memory what the store has, after a call that failed.

    Returns how many leading tokens stay as they are.
    """
    live = pending.live
    if pending.shift is None:
        live.cut(pending.base)
        return pending.base
    now = live.tokens
    live.tokens, live.marks = pending.shift.tokens, pending.shift.marks
    return n_common(now, live.tokens)


def _shortened(spans: Sequence[Span], room: int, *, keep_last: bool) -> list[Span]:
    """The spans without their oldest turns, until they fit into ``room`` tokens; ``keep_last``: the last turn stays.

    A turn begins at a user's message; the system's messages and tools stand before the first turn. In raw text each
    span after the first is a turn.
    """
    chat = any(span.role for span in spans)
    starts = [i for i, span in enumerate(spans) if (span.role == "user" if chat else i > 0)]
    head = len([span for span in spans[: starts[0]] if not chat or span.role in LEADING]) if starts else 0
    ends = starts[1:] if keep_last or not starts else [*starts[1:], len(spans)]
    n_before = [0, *accumulate(len(span.tokens) for span in spans)]
    n_kept, first = n_before[-1], head
    for end in ends:
        if n_kept <= room:
            break
        n_kept, first = n_before[head] + n_before[-1] - n_before[end], end
    return [*spans[:head], *spans[first:]]


def _begun_anew(engine: Engine, spans: list[Span], limit: int) -> list[Span]:
    """The spans with the first message of the user, and what stands before it, as the template begins a conversation
    with them: with the start token, a default system message, the system's message in the user's, or whatever else it
    puts there."""
    n = next((i + 1 for i, span in enumerate(spans) if span.role == "user"), 0)
    if not n or any(span.role is None for span in spans[:n]):
        return spans
    messages = [Message(span.role or "", span.text or "") for span in spans[:n]]
    return [*first_spans(engine, messages, limit=limit), *spans[n:]]

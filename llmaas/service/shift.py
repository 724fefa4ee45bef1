"""A context that is full goes on without its oldest messages, if the call allows it ("context shift").

Law: whole turns go, oldest first; never what stands before the first of them, and never the turn that is being
answered. This changes memory only: the store changes once, when the call is committed, so that a crash or a failure
leaves the old conversation, whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from llmaas.engine.base import Engine
from llmaas.kvchunks.store.store import Span
from llmaas.records import Message
from llmaas.service.call import Call
from llmaas.service.chat import turn_parts
from llmaas.service.live_context import total_tokens
from llmaas.service.pending_turn import PendingTurn, Shift
from llmaas.service.turn_spans import turn_spans


def is_tight(call: Call, limit: int) -> bool:
    """True if the context should shift before the answer begins: less than a quarter of ``limit`` is left for it, and
    less than it may need."""
    pending, max_new = call.pending, call.spec.max_new
    return call.spec.shifts and pending.base + pending.n_prompt + min(max_new, limit // 4) > limit


def shift(call: Call, stored: Sequence[Span], engine: Engine, limit: int) -> int | None:
    """Drop old turns of the call's context in memory until half of ``limit`` is free, or none is left to drop.

    ``stored``: the spans that the store has. Returns how many leading tokens stayed as they were; None if there was
    nothing to drop. Half, not just what the turn needs: all that follows the gap is computed anew, and this way that
    happens once in many turns.
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
    if kept and kept[0].role is not None and kept[0] is not so_far.kept[0]:
        kept[0] = _as_first_message(engine, kept[0])
    live.replace_spans(kept)
    try:
        spans = turn_spans(engine, live, pending.turn, answer=True)
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


def n_common(a: array[int], b: array[int]) -> int:
    """How many leading tokens two contexts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _shortened(spans: Sequence[Span], room: int, *, keep_last: bool) -> list[Span]:
    """The spans without their oldest turns, until they fit into ``room`` tokens; ``keep_last``: the last turn stays.

    A turn begins at a user's message; the system's messages stand before the first turn. In raw text each span after
    the first is a turn.
    """
    chat = any(span.role for span in spans)
    starts = [i for i, span in enumerate(spans) if (span.role == "user" if chat else i > 0)]
    head = len([span for span in spans[: starts[0]] if not chat or span.role == "system"]) if starts else 0
    ends = starts[1:] if keep_last or not starts else [*starts[1:], len(spans)]
    kept = list(spans)
    for end in ends:
        if total_tokens(kept) <= room:
            break
        kept = [*spans[:head], *spans[end:]]
    return kept


def _as_first_message(engine: Engine, span: Span) -> Span:
    """A message that has become the first of its context, as the template writes a first one: with the start token, a
    default system message, or whatever else it puts there."""
    message = Message(span.role or "", span.text or "")
    parts = turn_parts(lambda m, a: engine.render(m, answer=a), [], [message], past_open=False, answer=False)
    return Span(tuple(engine.tokenize(parts[0].text, special=True, bos=True)), message.role, message.content)

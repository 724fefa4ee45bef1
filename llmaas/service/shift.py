"""A context that is full goes on without its oldest messages, if the call allows it.

Law: whole turns go, oldest first, never what stands before the first of them, never the turn that is being answered. In
memory only: the store changes once, when the call is committed, so that a crash or a failure leaves the old
conversation, whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from llmaas.engine.base import Engine
from llmaas.kvchunks.store.store import Span
from llmaas.records import Message
from llmaas.service.call import Call, turn_spans
from llmaas.service.chat import turn_parts
from llmaas.service.contexts import MessageMark, total_tokens


@dataclass(slots=True)
class Shift:
    """What a call dropped of its context so far. ``tokens``, ``marks``: the context as it is in the store."""

    tokens: array[int]
    marks: list[MessageMark]
    kept: list[Span]
    dropped: int = 0


def is_tight(call: Call, limit: int) -> bool:
    """True if the context should shift before the answer begins: a quarter of ``limit`` is room enough to begin in."""
    return call.shifts and call.base + call.n_prompt + min(call.max_new, limit // 4) > limit


def shift(call: Call, stored: Sequence[Span], engine: Engine, limit: int) -> int | None:
    """Drop old turns of the call's context in memory until half of ``limit`` is free, or none is left to drop.

    ``stored``: the spans that the store has. Returns how many leading tokens stayed as they were; None if there was
    nothing to drop. Half, not just what the turn needs: all that follows the gap is computed anew, and this way that
    happens once in many turns.
    """
    live, old = call.live, call.live.tokens
    before = call.shift or Shift(old[: call.base], live.marks, list(stored))
    new = call.n_prompt + len(call.drawn)
    kept = _shortened(before.kept, limit // 2 - new, keep_last=not (call.turn.messages or call.turn.prompt))
    dropped = total_tokens(before.kept) - total_tokens(kept)
    if not dropped:
        return None
    if kept and kept[0].role is not None and kept[0] is not before.kept[0]:
        kept[0] = _opening(engine, kept[0])
    tokens, marks = old, live.marks
    live.reread(kept)
    try:
        spans = turn_spans(engine, live, call.turn, answer=True)
    except BaseException:
        live.tokens, live.marks = tokens, marks
        raise
    before.kept, before.dropped, call.shift = kept, before.dropped + dropped, before
    call.base, call.spans = len(live.tokens), spans
    for span in spans:
        live.tokens.extend(span.tokens)
    live.tokens.extend(call.drawn)
    return common(old, live.tokens)


def take_back(call: Call) -> int:
    """The context in memory as the store has it, after a call that failed; how many leading tokens stay as they are."""
    live = call.live
    if call.shift is None:
        live.cut(call.base)
        return call.base
    now = live.tokens
    live.tokens, live.marks = call.shift.tokens, call.shift.marks
    return common(now, live.tokens)


def common(a: array[int], b: array[int]) -> int:
    """How many leading tokens two contexts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _shortened(spans: Sequence[Span], room: int, *, keep_last: bool) -> list[Span]:
    """The spans without their oldest turns, until they fit ``room`` tokens; ``keep_last``: the last one stays.

    A turn begins at a user's message, and before the first stand the system's. Raw text has a turn for each span
    after its first.
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


def _opening(engine: Engine, span: Span) -> Span:
    """A message that is now the first, as the template writes a first one: with the start token, a default system
    message, or whatever else it puts there."""
    message = Message(span.role or "", span.text or "")
    parts = turn_parts(lambda m, a: engine.render(m, answer=a), [], [message], past_open=False, answer=False)
    return Span(tuple(engine.tokenize(parts[0].text, special=True, bos=True)), message.role, message.content)
